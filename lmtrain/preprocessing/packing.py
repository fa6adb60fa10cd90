"""Packing: which documents, texts or pairs share a row."""

import numpy as np

from lmtrain.preprocessing.ragged import Ragged, row_offsets


def best_fit(lengths: np.ndarray, room: int) -> Ragged:
    """Document numbers for each row of at most `room` tokens, ascending; rows are sorted by their first document.

    Best-fit decreasing (Johnson, 1974): the longest document first, each into the fullest row with enough room.
    `lengths` [documents], each at most `room`. Documents are never split.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # row numbers by remaining room
    free = 0  # bit r is set if some row has r tokens of room left
    order = np.argsort(-lengths, kind="stable")
    whole = int((lengths == room).sum())  # these come first; each fills a row
    for document in order[whole:].tolist():
        length = int(lengths[document])
        fitting = free >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            if not with_room[left]:
                free ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(document)
        left -= length
        with_room[left].append(row)
        free |= 1 << left
    sizes = np.array([*map(len, rows)], np.int64)
    shared = np.array([document for row in rows for document in sorted(row)], np.int64)
    if not len(shared):  # each document fills a row
        return Ragged(np.arange(whole), np.arange(whole + 1))
    return Ragged(np.append(order[:whole], shared), row_offsets(np.append(np.ones(whole, np.int64), sizes))).ordered()


def balance_rows(lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Text (or pair) numbers for each row, in nearly as few rows as possible, filled evenly.

    `lengths` [texts, 1] or [pairs, 2: source, target]. On each side, a row holds `width` tokens, or as many as the
    longest text has.
    """
    width = max(width, int(lengths.max()))
    # The least number of rows: two texts longer than half a row never share one.
    count = int(max(*-(-lengths.sum(0) // width), *(2 * lengths > width).sum(0)))
    while count < len(lengths):
        rows = _filled_evenly(lengths, count)
        if max(int(lengths[row].sum(0).max()) for row in rows) <= width:
            return rows
        count += max(count // 16, 1)
    return [*np.arange(len(lengths))[:, None]]


def _filled_evenly(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """The longest text first, each into the emptiest of `count` rows (LPT, Graham, 1969)."""
    totals, filled = lengths.sum(1), np.zeros(count, np.int64)
    rows: list[list[int]] = [[] for _ in range(count)]
    for text in np.argsort(-totals, kind="stable").tolist():
        row = int(filled.argmin())
        rows[row].append(text)
        filled[row] += totals[text]
    return [np.sort(row) for row in rows]


def count_slots(lengths: np.ndarray, rows: list[np.ndarray]) -> int:
    """Token slots, padding included, of a batch whose `rows` hold the texts (pairs) of `lengths` [texts, 1 or 2]."""
    return len(rows) * int(np.max([lengths[row].sum(0) for row in rows], 0).sum())


def share_rows(lengths: np.ndarray, width: int) -> tuple[list[np.ndarray] | None, int]:
    """(`balance_rows`, or None if sharing rows saves hardly any slots; token slots of the batch, padding included).

    `lengths` [texts, 1] or [pairs, 2]. None means one text or pair per row.
    """
    padded = len(lengths) * int(lengths.max(0).sum())
    if lengths.sum() > WORTH * padded:
        return None, padded
    rows = balance_rows(lengths, width)
    slots = count_slots(lengths, rows)
    return (rows, slots) if slots <= WORTH * padded else (None, padded)


WORTH = 0.95
"""Rows are shared only if this fraction of the padded slots is enough: block-diagonal attention also costs time."""
