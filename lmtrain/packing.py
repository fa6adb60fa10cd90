"""Rows of ids of different lengths in flat arrays, full rows cut from documents, and documents or pairs put into rows."""

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
        return cls(values, _offsets(np.array([len(array) for array in arrays], np.int64)))

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
        within = np.arange(pieces.sum()) - np.repeat(_offsets(pieces)[:-1], pieces)
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
        offsets = _offsets(self.lengths + len(before) + len(after))
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
        offsets = _offsets(lengths)
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], lengths)
        return Ragged(self.values[at], offsets)

    def first(self, rows: int) -> "Ragged":
        """The first `rows` rows."""
        return Ragged(self.values[: self.offsets[rows]], self.offsets[: rows + 1])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class Growing:
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


def best_fit(lengths: np.ndarray, room: int) -> Ragged:
    """Which documents share a row of `room` tokens: the documents of every row, each row in the order of the data.

    Best-fit decreasing (Johnson, 1974): the longest document first, each into the fullest row that still has room
    for it. Documents, none longer than `room`, stay whole; rows are sorted by their first document.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left: rows
    there = 0  # bit r: there is a row with room r
    order = np.argsort(-lengths, kind="stable")
    whole = int((lengths == room).sum())  # these come first, and each is a row
    for document in order[whole:].tolist():
        length = int(lengths[document])
        fitting = there >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            if not with_room[left]:
                there ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(document)
        left -= length
        with_room[left].append(row)
        there |= 1 << left
    sizes = np.array([*map(len, rows)], np.int64)
    shared = np.array([document for row in rows for document in sorted(row)], np.int64)
    if not len(shared):  # all of them are whole rows
        return Ragged(np.arange(whole), np.arange(whole + 1))
    return Ragged(np.append(order[:whole], shared), _offsets(np.append(np.ones(whole, np.int64), sizes))).ordered()


def level(lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Which texts (pairs) share a row, by their `lengths` [texts, 1 (2)]: nearly as few rows as hold them, filled alike.

    A row has room for `width` tokens, or as many as the longest text (on either side of the longest pair).
    """
    width = max(width, int(lengths.max()))
    count = int(max(*-(-lengths.sum(0) // width), *(2 * lengths > width).sum(0)))  # no two of these fit in one
    while count < len(lengths):
        shared = _filled_alike(lengths, count)
        if max(int(lengths[row].sum(0).max()) for row in shared) <= width:
            return shared
        count += max(count // 16, 1)
    return [*np.arange(len(lengths))[:, None]]


def _filled_alike(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """The longest first, each into the row that is the emptiest (LPT, Graham, 1969)."""
    whole, filled, found = lengths.sum(1), np.zeros(count, np.int64), [[] for _ in range(count)]  # type: ignore[var-annotated]
    for text in np.argsort(-whole, kind="stable").tolist():
        row = int(filled.argmin())
        found[row].append(text)
        filled[row] += whole[text]
    return [np.sort(row) for row in found]


def places_of(lengths: np.ndarray, shared: list[np.ndarray]) -> int:
    """For tokens, padding included, in rows that are `shared` so by texts (pairs) with `lengths` [texts, 1 (2)]."""
    return len(shared) * int(np.max([lengths[row].sum(0) for row in shared], 0).sum())


def end_to_end(lengths: np.ndarray, width: int) -> tuple[list[np.ndarray] | None, int]:
    """(which texts share a row, as `level` says; places for tokens, padding included), None where each has a row of its own:
    where sharing spares hardly any.
    """
    padded = len(lengths) * int(lengths.max(0).sum())
    if lengths.sum() > WORTH * padded:
        return None, padded
    shared = level(lengths, width)
    places = places_of(lengths, shared)
    return (shared, places) if places <= WORTH * padded else (None, padded)


WORTH = 0.95
"""Of the places of padded rows: telling texts apart costs a model something as well."""
