"""Reads tables into usable rows: all at once, or in the chunks of a stream."""

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

from lmtrain.config.data import Split
from lmtrain.data.chats import Chat, chat_notes
from lmtrain.data.columns import BadRow, Entry, Record
from lmtrain.data.layouts import FirstValues, choose, column_names, left_out
from lmtrain.data.ledger import Ledger
from lmtrain.data.readers.conll import sentences
from lmtrain.data.readers.delimited import looks_like_data
from lmtrain.data.remarks import Remarks, told
from lmtrain.data.rows import Rows, Texts
from lmtrain.data.selection import OPTIONS, Selection
from lmtrain.data.sources import open_tables
from lmtrain.data.tables import STDIN, Table, is_stdin, notes_on
from lmtrain.errors import InputError, visible

LONGEST_PIECE, LONGEST_ROW = 20_000, 1_000_000
"""Characters. A longer line of running text, or a longer row, is split before white space into pieces."""

PEEKED = 100
"""Records of a table by which its columns are chosen."""

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
        self._remarks, self._warnings = ([Remarks(table.name) for table in tables] for _ in range(2))
        self._first_bad = ""

    def is_running_text(self, table: int) -> bool:
        """Whether a table is one document rather than one per row."""
        return self.tables[table].is_text and self.data.unit == "document"

    def rows(self, table: int = 0, skipped: int = 0) -> Iterator[RawRow]:
        """Yield all rows, beginning with row `skipped` of table `table`. Raises InputError for unusable data."""
        for index in range(table, len(self.tables)):
            yield from islice(self._rows(index), skipped if index == table else 0, None)

    def _rows(self, index: int) -> Iterator[RawRow]:
        table, counts = self.tables[index], self._remarks[index].counts
        counts.clear()
        numbered = self._entries(table, counts)
        peeked = list(self._peek(numbered, table))
        records = [entry for _, entry in peeked if not isinstance(entry, BadRow)]
        if not records:  # then all of the table has been read
            yield from ((index, number, (), True) for number, _ in peeked)
            return
        selection = self._choose(records, index)
        running = self.is_running_text(index)
        for number, entry in chain(peeked, numbered):
            try:
                if isinstance(entry, BadRow):
                    raise entry
                value = entry["text"] if running else selection.value(entry, counts)
            except BadRow as problem:
                self._leave_out(problem, number, table)
                yield index, number, (), True
                continue
            if isinstance(value, str):
                text = value.rstrip("\n") if table.is_text and not running else value
                longest = LONGEST_PIECE if running else LONGEST_ROW
                yield index, number, (text,) if len(text) <= longest else tuple(_pieces(text)), False
            else:
                yield index, number, () if value is None else (value,), False

    def _entries(self, table: Table, counts: Counter[str]) -> Iterator[tuple[int, Entry]]:
        """The rows of a table: lines, or the sentences or paragraphs that they make."""
        if table.is_text and self.data.unit == "sentence":
            return islice(sentences(table.read(), table.name, counts), table.limit)
        return _paragraphs(table) if table.is_text and self.data.unit == "paragraph" else iter(table)

    def _peek(self, numbered: Iterator[tuple[int, Entry]], table: Table) -> Iterator[tuple[int, Entry]]:
        """The rows up to the hundredth record: any record may lack a column, even the first."""
        count = 0
        for number, entry in numbered:
            if isinstance(entry, BadRow):
                self._leave_out(entry, number, table)
            yield number, entry
            count += not isinstance(entry, BadRow)
            if count == PEEKED:
                return

    def _leave_out(self, problem: BadRow, number: int, table: Table) -> None:
        """Raise InputError unless bad rows are dropped."""
        message = problem.at(table.location(number))
        if self.data.on_bad == "error":
            raise InputError(f"{message}; --on-bad drop leaves such rows out") from None
        self._first_bad = self._first_bad or f"{message} (the first bad row that is left out)"

    def _choose(self, records: list[Record], index: int) -> Selection:
        table, names = self.tables[index], FirstValues(records)
        selection = choose(names, self.data, table.name, table.hint)
        if self.kind and selection.kind != self.kind:
            raise InputError(f"{table.name}: holds {selection.kind} rows, the data before it {self.kind} rows")
        self.kind = selection.kind
        remarks = []
        if selection.detected and not table.is_text:
            remarks.append(f"using column{'s' if len(selection.paths) > 1 else ''} {selection}")
        if table.has_header and looks_like_data(names, records):
            listed = column_names(names)
            remarks.append(f"its first line is the header ({listed}); if it is a row, name the columns with --columns")
        self._remarks[index].fixed = tuple(remarks)
        if selection.kind != "messages":
            flag = f"--{OPTIONS[selection.kind][0].replace('_', '-')}"
            self._warnings[index].fixed = tuple(left_out(selection.paths, records, flag))
        return selection

    @property
    def notes(self) -> list[str]:
        """Notes on the tables and on what was found in them; one line for all that are alike."""
        bad = [self._first_bad] if self._first_bad else []
        return list(dict.fromkeys([*notes_on(self.tables), *told(self._remarks), *bad]))

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
            told(self._warnings),
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


def _paragraphs(table: Table) -> Iterator[tuple[int, Entry]]:
    """Join the lines up to each blank line; the number is that of the first line. One bad line makes all of them bad."""
    lines: list[str] = []
    problem: BadRow | None = None
    start = 1
    for number, entry in chain(table, [(0, {"text": ""})]):
        if isinstance(entry, BadRow) or entry["text"].strip():
            start = start if lines or problem else number
            if isinstance(entry, BadRow):
                problem = problem or entry
            else:
                lines.append(entry["text"])
        elif lines or problem:
            yield start, problem or {"text": "".join(lines)}
            lines, problem = [], None


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
