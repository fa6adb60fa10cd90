"""TODO."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one array: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: type = np.int32) -> "Ragged":
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
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
        """The rows from each of the `first` ones to the next as one row."""
        return Ragged(self.values, np.append(self.offsets[first], self.offsets[-1]))

    def split(self, length: int) -> "Ragged":
        """Every row on its own, cut every `length`."""
        pieces = self.pieces(length)
        within = np.arange(pieces.sum()) - np.repeat(row_offsets(pieces)[:-1], pieces)
        starts = np.repeat(self.offsets[:-1], pieces) + within * length
        return Ragged(self.values, np.append(starts, self.offsets[-1]))

    def pieces(self, length: int) -> np.ndarray:
        """How many pieces `split` makes of each row; none of an empty one."""
        return -(-self.lengths // length)

    def windows(self, length: int, stride: int) -> tuple["Ragged", "Ragged"]:
        """(every row on its own through a window of `length` that moves on by `stride`, which tokens (bool) are new).

        The last window of a row holds its end; a token is new in the first window that holds it.
        """
        shown, new = [], []
        for row in range(len(self)):
            tokens, start, seen = self[row], 0, 0
            while seen < len(tokens):
                end = min(start + length, len(tokens))
                shown.append(tokens[start:end])
                new.append(np.arange(start, end) >= seen)
                start, seen = start + stride, end
        return Ragged.of(shown, self.values.dtype), Ragged.of(new, np.bool_)

    def framed(self, before: Sequence[int], after: Sequence[int]) -> "Ragged":
        """Every row with `before` in front of it and `after` behind it."""
        offsets = row_offsets(self.lengths + len(before) + len(after))
        values = np.empty(offsets[-1], self.values.dtype)
        inside = np.ones(len(values), bool)
        for at, mark in [*enumerate(before), *enumerate(after, -len(after))]:
            places = (offsets[:-1] if at >= 0 else offsets[1:]) + at
            values[places], inside[places] = mark, False
        values[inside] = self.values
        return Ragged(values, offsets)

    def ordered(self) -> "Ragged":
        """The rows sorted by their first value; none is empty."""
        order = np.argsort(self.values[self.offsets[:-1]], kind="stable")
        lengths = self.lengths[order]
        offsets = row_offsets(lengths)
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], lengths)
        return Ragged(self.values[at], offsets)

    def first(self, rows: int) -> "Ragged":
        """The first `rows` rows."""
        return Ragged(self.values[: self.offsets[rows]], self.offsets[: rows + 1])


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class GrowingRagged:
    """A Ragged in the making, straight into one flat array of a type of Python's `array`."""

    def __init__(self, kind: str = "i"):
        self.values, self.offsets = array(kind), array("q", [0])

    @property
    def begun(self) -> int:
        """Values of the row that is being made."""
        return len(self.values) - self.offsets[-1]

    def extend(self, part: Iterable[int]) -> None:
        self.values.extend(part)

    def close(self, kept: int) -> None:
        """End the row, of which the first `kept` values stay; of nothing no row is made."""
        del self.values[self.offsets[-1] + kept :]
        if kept:
            self.offsets.append(len(self.values))

    def done(self) -> Ragged:
        dtype = np.dtype(self.values.typecode)
        values = np.frombuffer(self.values, dtype) if self.values else np.empty(0, dtype)
        return Ragged(values, np.frombuffer(self.offsets, np.int64))
