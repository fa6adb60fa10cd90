"""Rows of different lengths in one flat array with offsets."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is `values[offsets[i] : offsets[i + 1]]`. `offsets` is [rows + 1] int64."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: DTypeLike = np.int32) -> "Ragged":
        arrays: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
        return cls(values, row_offsets(np.array([len(array) for array in arrays], np.int64)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        return self.offsets[rows + 1] - self.offsets[rows]

    def joined(self, first: np.ndarray) -> "Ragged":
        """Concatenated rows: each begins with a row of `first` (indices, ascending) and ends before the next one."""
        return Ragged(self.values, np.append(self.offsets[first], self.offsets[-1]))

    def split(self, length: int) -> "Ragged":
        """Each row cut into pieces of `length`; the last piece may be shorter."""
        pieces = self.pieces(length)
        within = np.arange(pieces.sum()) - np.repeat(row_offsets(pieces)[:-1], pieces)
        starts = np.repeat(self.offsets[:-1], pieces) + within * length
        return Ragged(self.values, np.append(starts, self.offsets[-1]))

    def pieces(self, length: int) -> np.ndarray:
        """[rows] number of pieces that `split` cuts each row into; 0 for an empty row."""
        return -(-self.lengths // length)

    def windows(self, length: int, stride: int) -> tuple["Ragged", "Ragged"]:
        """(sliding windows of `length` over each row, every `stride` values; bool: whether a value is new).

        The last window of a row reaches its end. A value is new in the first window that contains it.
        """
        windows, new = [], []
        for row in range(len(self)):
            tokens, start, seen = self[row], 0, 0
            while seen < len(tokens):
                end = min(start + length, len(tokens))
                windows.append(tokens[start:end])
                new.append(np.arange(start, end) >= seen)
                start, seen = start + stride, end
        return Ragged.of(windows, self.values.dtype), Ragged.of(new, np.bool_)

    def wrapped(self, before: Sequence[int], after: Sequence[int]) -> "Ragged":
        """Each row with the values `before` in front of it and `after` behind it."""
        offsets = row_offsets(self.lengths + len(before) + len(after))
        values = np.empty(offsets[-1], self.values.dtype)
        inside = np.ones(len(values), bool)
        for position, value in [*enumerate(before), *enumerate(after, -len(after))]:
            slots = (offsets[:-1] if position >= 0 else offsets[1:]) + position
            values[slots], inside[slots] = value, False
        values[inside] = self.values
        return Ragged(values, offsets)

    def ordered(self) -> "Ragged":
        """The rows sorted by their first value. No row may be empty."""
        order = np.argsort(self.values[self.offsets[:-1]], kind="stable")
        lengths = self.lengths[order]
        offsets = row_offsets(lengths)
        indices = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], lengths)
        return Ragged(self.values[indices], offsets)

    def first(self, rows: int) -> "Ragged":
        """The first `rows` rows."""
        return Ragged(self.values[: self.offsets[rows]], self.offsets[: rows + 1])


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    """[rows + 1] int64: where each row of these `lengths` begins in a flat array, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class GrowingRagged:
    """Builds a Ragged row by row, in one flat `array.array` of type code `kind`."""

    def __init__(self, kind: str = "i"):
        self.values, self.offsets = array(kind), array("q", [0])

    @property
    def open_length(self) -> int:
        """Number of values in the open row."""
        return len(self.values) - self.offsets[-1]

    def extend(self, part: Iterable[int]) -> None:
        self.values.extend(part)

    def close(self, kept: int) -> None:
        """Close the open row and keep its first `kept` values. No row is added if none are kept."""
        del self.values[self.offsets[-1] + kept :]
        if kept:
            self.offsets.append(len(self.values))

    def done(self) -> Ragged:
        dtype = np.dtype(self.values.typecode)
        values = np.frombuffer(self.values, dtype) if self.values else np.empty(0, dtype)
        return Ragged(values, np.frombuffer(self.offsets, np.int64))
