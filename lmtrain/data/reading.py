"""Reads tables into usable rows: all at once, or in the chunks of a stream."""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

from lmtrain.config.data import Split
from lmtrain.data.chats import Chat, chat_notes
from lmtrain.data.columns import BadRow, Record
from lmtrain.data.conll import sentences
from lmtrain.data.layouts import choose
from lmtrain.data.ledger import Ledger
from lmtrain.data.rows import Rows, Texts
from lmtrain.data.selection import Selection
from lmtrain.data.sources import STDIN, Table, is_stdin, notes_on, open_tables
from lmtrain.errors import InputError, visible

LONGEST_PIECE, LONGEST_ROW = 20_000, 1_000_000
"""Characters. A longer line of running text, or a longer row, is split before white space into pieces."""

CHUNK_CHARACTERS = 16_000_000
"""A chunk of a stream ends with the row that reaches this size."""

RawRow = tuple[int, int, tuple[Any, ...], bool]
"""(index of the table, line or row number, usable values, whether the row is bad).

There are several values where a long row is split, and none where the row is empty or bad. A plain tuple, because
there may be millions.
"""


class RowReader:
    """Reads tables row by row, as often as needed, and chooses the columns of each."""

    def __init__(self, tables: tuple[Table, ...], data: Split):
        self.tables, self.data = tables, data
        self.kind = ""
        self._detected: dict[str, dict[str, None]] = {}  # message about detected columns -> names of the tables

    def is_running_text(self, table: int) -> bool:
        """Whether a table is one document rather than one per row."""
        return self.tables[table].is_text and self.data.unit == "document"

    def rows(self, table: int = 0, skipped: int = 0) -> Iterator[RawRow]:
        """Yield all rows, beginning with row `skipped` of table `table`. Raises InputError for unusable data."""
        for index in range(table, len(self.tables)):
            yield from islice(self._rows(index), skipped if index == table else 0, None)

    def _rows(self, index: int) -> Iterator[RawRow]:
        table = self.tables[index]
        numbered = iter(_UNITS.get(self.data.unit, iter)(table) if table.is_text else table)
        peeked = list(islice(numbered, 100))  # any row may lack a column, even the first
        if not peeked:
            return
        columns = {name: value for _, record in reversed(peeked) for name, value in record.items()}
        columns |= {name: value for _, record in reversed(peeked) for name, value in record.items() if value}
        selection = self._choose(columns, table)
        if self.is_running_text(index):
            for number, record in chain(peeked, numbered):
                text = record["text"]
                yield index, number, (text,) if len(text) <= LONGEST_PIECE else tuple(_pieces(text)), False
            return
        for number, record in chain(peeked, numbered):
            try:
                value = selection.value(record)
            except BadRow as problem:
                if self.data.on_bad == "error":
                    raise InputError(
                        f"{table.location(number)}, {problem}; --on-bad drop leaves such rows out"
                    ) from None
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
        if selection.detected and not table.is_text:
            message = f"using column{'s' if len(selection.paths) > 1 else ''} {selection}"
            self._detected.setdefault(message, {})[table.name] = None
        return selection

    @property
    def notes(self) -> list[str]:
        """Notes on the tables, on what was found in them and on the detected columns; one line for all that are alike."""
        detected = [
            f"{next(iter(names))}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}: {message}"
            for message, names in self._detected.items()
        ]
        return list(dict.fromkeys([*notes_on(self.tables), *detected]))

    def collect(self, rows: Iterable[RawRow]) -> Rows:
        """The usable rows; the ledgers count the others."""
        texts, others = Texts(), list[Any]()
        table_of, numbers, last_serials = array("i"), array("q"), {}
        ledgers = tuple(Ledger() for _ in range(1 + max((table.source for table in self.tables), default=0)))
        running = [self.is_running_text(index) for index in range(len(self.tables))]
        for index, number, values, bad in rows:
            if not values:
                ledger = ledgers[self.tables[index].source]
                ledger.rows_bad += bad
                ledger.rows_empty += not bad
            for value in values:
                (texts if isinstance(value, str) else others).append(value)
                table_of.append(index)
                numbers.append(number)
            if running[index]:
                last_serials[index] = len(numbers)
        serials = range(1, len(numbers) + 1)
        return Rows(
            self.kind,
            self.tables,
            others or texts,  # all rows are of one kind
            table_of,
            numbers,
            serials,
            array("q"),
            last_serials,
            ledgers,
            self.notes + (chat_notes(others) if self.kind == "messages" else []),
        )


def load(
    specifications: list[str], data: Split, split: str = "train", tables: tuple[Table, ...] | None = None
) -> Rows:
    """Read the data that `specifications` (values of `--data`) name, from the `tables` if they are open already.

    Raises InputError for data that is missing, damaged, without the requested columns or without a usable row.
    """
    reader = RowReader(open_tables(specifications, data, split) if tables is None else tables, data)
    rows = reader.collect(reader.rows())
    if not rows.has_text():
        raise InputError(f"{_named(specifications)}: no usable text{_unused(rows.ledgers)}")
    return replace(rows, groups=_groups(rows), notes=[*rows.notes, *_note_references(rows)])


def _named(specifications: list[str]) -> str:
    return ", ".join(STDIN if is_stdin(name) else visible(name, 200) for name in specifications)


def _unused(ledgers: Iterable[Ledger]) -> str:
    ledgers = list(ledgers)
    counts = {reason: sum(vars(ledger)[f"rows_{reason}"] for ledger in ledgers) for reason in ("empty", "bad")}
    message = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f" ({message} rows)" if message else ""


def _note_references(rows: Rows) -> list[str]:
    count = sum(len(value) > 2 for value in rows.values) if rows.kind == "pairs" else 0
    message = f"{count:,} rows have several targets: training uses the first, text metrics use all"
    return [message] if count else []


def _paragraphs(table: Table) -> Iterator[tuple[int, Record]]:
    """Join the lines up to each blank line; the number is that of the first line."""
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
"""Unit -> reader that joins the lines of a text file to such units."""


def _pieces(line: str) -> Iterator[str]:
    start = 0
    while len(line) - start > LONGEST_PIECE:
        cut = line.rfind(" ", start + 1, start + LONGEST_PIECE)
        cut = cut if cut > 0 else start + LONGEST_PIECE
        yield line[start:cut]
        start = cut
    yield line[start:]


def _groups(rows: Rows) -> "array[int]":
    """The group of each value: one per row; of running text, one per passage of up to 4,000 characters.

    Holding out single lines would tear running text apart.
    """
    running = rows.last_serials
    characters = sum(len(v) for v, table in zip(rows.values, rows.table_of, strict=True) if table in running)
    passage = min(max(characters // 100, 1), 4000)
    groups = array("q")
    group = size = 0
    previous = None
    for value, row in zip(rows.values, zip(rows.table_of, rows.numbers, strict=True), strict=True):
        table = row[0]
        same_passage = previous is not None and table == previous[0] and table in running and size < passage
        if previous is not None and not same_passage and (row != previous or table in running):
            group, size = group + 1, 0
        groups.append(group)
        size += len(value)
        previous = row
    return groups


class Position(NamedTuple):
    """A position in a stream: after `rows` rows of table `table`."""

    table: int = 0
    rows: int = 0


def chunks(reader: RowReader, start: Position, size: int) -> Iterator[tuple[Rows, Position]]:
    """Yield (chunk, position after it): `size` rows at a time, or fewer where they are long.

    Running text that continues in the next chunk does not end in this one.
    """
    rows = reader.rows(*start)
    position, following = start, next(rows, None)
    while following is not None:
        taken: list[RawRow] = []
        characters = 0
        while following is not None and len(taken) < size and characters < CHUNK_CHARACTERS:
            table, _, values, _ = following
            position = Position(table, position.rows + 1 if table == position.table else 1)
            taken.append(following)
            characters += sum(map(_characters, values))
            following = next(rows, None)
        chunk = reader.collect(taken)
        if following is None:
            yield replace(chunk, is_chunk=True), position
            return
        if following[0] in chunk.last_serials:
            chunk.last_serials[following[0]] = sys.maxsize
        same_source = reader.tables[following[0]].source == reader.tables[position.table].source
        yield replace(chunk, is_chunk=True, has_next=True, next_is_same_source=same_source), position


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(map(len, value.texts() if isinstance(value, Chat) else value))
