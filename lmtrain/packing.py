"""Rows of ids of different lengths in flat arrays, and full rows cut from documents."""

from collections.abc import Iterable, Sequence
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
        lengths = [len(array) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def joined(self, length: int) -> "Ragged":
        """All rows one after another, cut anew every `length`: nothing is lost, the last row may be shorter."""
        return Ragged(self.values, _cuts(len(self.values), length))

    def split(self, length: int) -> "Ragged":
        """Every row on its own, cut every `length`."""
        starts = [
            start + _cuts(end - start, length)[:-1] for start, end in zip(self.offsets, self.offsets[1:], strict=False)
        ]
        return Ragged(self.values, np.concatenate([*starts, [len(self.values)]]).astype(np.int64))

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
        dtype = self.values.dtype
        return Ragged.of((np.concatenate([before, self[i], after]).astype(dtype) for i in range(len(self))), dtype)


def _cuts(total: int, length: int) -> np.ndarray:
    return np.concatenate([np.arange(0, total, length), [total]]).astype(np.int64)
