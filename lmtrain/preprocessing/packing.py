"""Rows of ids of different lengths in flat arrays, full rows cut from documents, and documents or pairs put into rows."""

import numpy as np

from lmtrain.preprocessing.ragged import Ragged, row_offsets


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
    return Ragged(np.append(order[:whole], shared), row_offsets(np.append(np.ones(whole, np.int64), sizes))).ordered()


def balance_rows(lengths: np.ndarray, width: int) -> list[np.ndarray]:
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


def slots_of(lengths: np.ndarray, shared: list[np.ndarray]) -> int:
    """For tokens, padding included, in rows that are `shared` so by texts (pairs) with `lengths` [texts, 1 (2)]."""
    return len(shared) * int(np.max([lengths[row].sum(0) for row in shared], 0).sum())


def share_rows(lengths: np.ndarray, width: int) -> tuple[list[np.ndarray] | None, int]:
    """(which texts share a row, as `level` says; places for tokens, padding included), None where each has a row of its own:
    where sharing spares hardly any.
    """
    padded = len(lengths) * int(lengths.max(0).sum())
    if lengths.sum() > WORTH * padded:
        return None, padded
    shared = balance_rows(lengths, width)
    places = slots_of(lengths, shared)
    return (shared, places) if places <= WORTH * padded else (None, padded)


WORTH = 0.95
"""Of the places of padded rows: telling texts apart costs a model something as well."""
