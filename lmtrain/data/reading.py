"""Tables -> rows: what is left once the usable values are picked out, with the file and line of each."""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

from lmtrain.config.data import Split
from lmtrain.data.columns import BadRow, Record, Selection, choose
from lmtrain.data.conll import sentences
from lmtrain.data.ledger import Ledger
from lmtrain.data.rows import Rows, Texts
from lmtrain.data.sources import Table, open_tables
from lmtrain.errors import InputError, visible

LONGEST_PIECE, LONGEST_ROW = 20_000, 1_000_000
"""Characters: a longer line of running text, or a longer row, is tokenised in pieces, cut before white space."""

MOST_CHARACTERS = 16_000_000
"""Of a chunk of a stream, but for its last row."""


# --- a pass over the tables ------------------------------------------------------------------------------------------
Entry = tuple[int, int, tuple[Any, ...], bool]
"""A row as it is read: its table, its number, its usable values (several: the pieces of a long one), whether it is bad.

A row without values that is not bad is empty. Plain tuples, because there may be millions.
"""


class Reading:
    """Passes over tables, row by row; finds out which columns are meant and says so."""

    def __init__(self, tables: tuple[Table, ...], data: Split):
        self.tables, self.data = tables, data
        self.kind = ""
        self._found: dict[str, dict[str, None]] = {}  # columns that were found by name, and the tables they are in

    def runs(self, table: int) -> bool:
        """Whether a table is running text, one document, rather than rows."""
        return self.tables[table].is_text and self.data.unit == "document"

    def entries(self, table: int = 0, skipped: int = 0) -> Iterator[Entry]:
        """All rows from row `skipped` of a table on. Raises InputError for what is broken."""
        for index in range(table, len(self.tables)):
            yield from islice(self._entries(index), skipped if index == table else 0, None)

    def _entries(self, index: int) -> Iterator[Entry]:
        table = self.tables[index]
        numbered = iter(_UNITS.get(self.data.unit, iter)(table) if table.is_text else table)
        peeked = list(islice(numbered, 100))  # a column may be missing in some rows, the first one too
        if not peeked:
            return
        columns = {name: value for _, record in reversed(peeked) for name, value in record.items()}
        selection = self._choose(columns, table)
        if self.runs(index):
            for number, record in chain(peeked, numbered):
                text = record["text"]
                yield index, number, (text,) if len(text) <= LONGEST_PIECE else tuple(_pieces(text)), False
            return
        for number, record in chain(peeked, numbered):
            try:
                value = selection.value(record)
            except BadRow as problem:
                if self.data.on_bad == "error":
                    raise InputError(f"{table.place(number)}, {problem}; --on-bad drop leaves such rows out") from None
                yield index, number, (), True
                continue
            if isinstance(value, str):
                text = value.rstrip("\n") if table.is_text else value
                yield index, number, (text,) if len(text) <= LONGEST_ROW else tuple(_pieces(text)), False
            else:
                yield index, number, () if value is None else (value,), False

    def _choose(self, columns: Record, table: Table) -> Selection:
        selection = choose(columns, self.data, table.name)
        if self.kind and selection.kind != self.kind:
            raise InputError(f"{table.name}: holds {selection.kind} rows, the data before it {self.kind} rows")
        self.kind = selection.kind
        if selection.found and not table.is_text:
            told = f"using column{'s' if len(selection.paths) > 1 else ''} {selection}"
            self._found.setdefault(told, {})[table.name] = None
        return selection

    @property
    def notes(self) -> list[str]:
        """Which columns were found, one line for all tables that are alike."""
        found = [
            f"{next(iter(names))}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}: {told}"
            for told, names in self._found.items()
        ]
        return [note for table in self.tables for note in table.notes] + found

    def collect(self, entries: Iterable[Entry]) -> Rows:
        """The usable rows among `entries`, and the count of the others."""
        texts, others = Texts(), list[Any]()
        table_of, numbers, last = array("i"), array("q"), {}
        ledgers = tuple(Ledger() for _ in range(1 + max((table.source for table in self.tables), default=0)))
        running = [self.runs(index) for index in range(len(self.tables))]
        for index, number, own, bad in entries:
            if not own:
                ledger = ledgers[self.tables[index].source]
                ledger.rows_bad += bad
                ledger.rows_empty += not bad
            for value in own:
                (texts if isinstance(value, str) else others).append(value)
                table_of.append(index)
                numbers.append(number)
            if running[index]:
                last[index] = len(numbers)
        serials = range(1, len(numbers) + 1)
        values = others or texts  # all rows are of one kind
        return Rows(self.kind, self.tables, values, table_of, numbers, serials, array("q"), last, ledgers, self.notes)


def load(specifications: list[str], data: Split, split: str = "train") -> Rows:
    """Read everything that `specifications` name and pick out the usable values.

    Raises InputError for data that is not there, broken, without the columns meant, or without a usable row.
    """
    reading = Reading(open_tables(specifications, data, split), data)
    rows = reading.collect(reading.entries())
    if not rows.has_text():
        raise InputError(f"{_named(specifications)}: no usable text{_unused(rows.ledgers)}")
    return replace(rows, groups=_passages(rows), notes=[*rows.notes, *_several(rows)])


def _named(specifications: list[str]) -> str:
    return ", ".join(visible(specification, 200) for specification in specifications)


def _unused(ledgers: Iterable[Ledger]) -> str:
    ledgers = list(ledgers)
    counts = {fate: sum(vars(ledger)[f"rows_{fate}"] for ledger in ledgers) for fate in ("empty", "bad")}
    told = ", ".join(f"{count:,} {fate}" for fate, count in counts.items() if count)
    return f" ({told} rows)" if told else ""


def _several(rows: Rows) -> list[str]:
    count = sum(len(value) > 2 for value in rows.values) if rows.kind == "pairs" else 0
    return [f"{count:,} rows have several targets: the first is learnt, metrics of text take all"] if count else []


def _paragraphs(table: Table) -> Iterator[tuple[int, Record]]:
    """Lines joined up to the next blank one; the number is that of the first line."""
    lines: list[str] = []
    start = 1
    for number, record in table:
        if record["text"].strip():
            start = start if lines else number
            lines.append(record["text"])
        elif lines:
            yield start, {"text": "".join(lines)}
            lines = []
    if lines:
        yield start, {"text": "".join(lines)}


_UNITS: dict[str, Callable[[Table], Iterable[tuple[int, Record]]]] = {"paragraph": _paragraphs, "sentence": sentences}
"""How the lines of a text file become documents, where they are not these themselves."""


def _pieces(line: str) -> Iterator[str]:
    start = 0
    while len(line) - start > LONGEST_PIECE:
        cut = line.rfind(" ", start + 1, start + LONGEST_PIECE)
        cut = cut if cut > 0 else start + LONGEST_PIECE
        yield line[start:cut]
        start = cut
    yield line[start:]


def _passages(rows: Rows) -> "array[int]":
    """Every row a group; but running text, which would be torn to single lines, some hundred passages."""
    running = sum(len(v) for v, table in zip(rows.values, rows.table_of, strict=True) if table in rows.last)
    enough = min(max(running // 100, 1), 4000)
    groups = array("q")
    group = size = 0
    before = None
    for value, place in zip(rows.values, zip(rows.table_of, rows.numbers, strict=True), strict=True):
        runs = before is not None and place[0] == before[0] and place[0] in rows.last and size < enough
        if before is not None and not runs and (place != before or place[0] in rows.last):
            group, size = group + 1, 0
        groups.append(group)
        size += len(value)
        before = place
    return groups


# --- a stream of chunks ----------------------------------------------------------------------------------------------
class Position(NamedTuple):
    """How far a stream has been read: `rows` of a table."""

    table: int = 0
    rows: int = 0


def chunks(reading: Reading, start: Position, most: int) -> Iterator[tuple[Rows, Position]]:
    """(rows, where the next ones start), `most` at a time, or fewer where they are long.

    A running text that goes on in the next chunk does not end in this one.
    """
    entries = reading.entries(*start)
    position, ahead = start, next(entries, None)
    while ahead is not None:
        taken: list[Entry] = []
        size = 0
        while ahead is not None and len(taken) < most and size < MOST_CHARACTERS:
            table, _, values, _ = ahead
            position = Position(table, position.rows + 1 if table == position.table else 1)
            taken.append(ahead)
            size += sum(map(_size, values))
            ahead = next(entries, None)
        rows = reading.collect(taken)
        if ahead is not None and ahead[0] in rows.last:
            rows.last[ahead[0]] = sys.maxsize
        same = ahead is not None and reading.tables[ahead[0]].source == reading.tables[position.table].source
        yield replace(rows, part=True, more=ahead is not None, open=same), position


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(text if isinstance(text, str) else text["content"]) for text in value)
