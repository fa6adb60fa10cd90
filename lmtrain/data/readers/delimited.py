"""Reads .csv and .tsv files with the separators, quotation marks and headers that spreadsheets and libraries write."""

import csv
import io
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import IO, Any, Literal

from lmtrain.data.columns import TWICE, BadRow, Entry, Record
from lmtrain.data.readers.text_files import Numbered, decoded, undecodable
from lmtrain.errors import InputError, visible

MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SAMPLE = 1000
"""Lines that show the separator, and whether cells are quoted."""

_SEP = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_QUOTED = re.compile(r'(?:^|\t)"')
_VALUE = re.compile(r"[-+]?\d+([.,]\d+)?|.*[?!。？！…]|.* .*\.|.{60,}|(\S+\s+){5,}.*", re.DOTALL)
"""What the name of a column hardly ever is: a number or a sentence."""

Cells = list[str] | BadRow
"""The cells of a row, or why it has none."""

NAMELESS = "{count} rows have text in columns without a name, which are not read"


def read_delimited(
    opener: Callable[[], IO[bytes]],
    encoding: str | None,
    name: str,
    usual: str,
    columns: Sequence[str] = (),
    counts: Counter[str] | None = None,
) -> Numbered:
    """Read a table whose cells are `usual`ly separated by commas or tabs.

    The first row is the header, unless `columns` gives the names. `counts` counts what is to be said (remarks.py).
    """
    csv.field_size_limit(sys.maxsize)
    counts = Counter() if counts is None else counts
    counts.clear()
    with decoded(opener, encoding, name, newline="") as stream:
        sample = list(islice(stream, SAMPLE))
        declared = _SEP.fullmatch(sample[0]) if sample else None
        separator = declared[1] if declared else _separator(sample, usual)
        if separator != usual:
            counts[f"its cells are separated by {MARKS.get(separator, visible(separator))}"] += 1
        skipped = 1 if declared else 0
        rows = _rows(chain(sample[skipped:], stream), separator, skipped)
        yield from _records(_checked(rows, stream), name, columns, counts)


def _checked(rows: Iterator[tuple[int, Cells]], stream: io.TextIOWrapper) -> Iterator[tuple[int, Cells]]:
    """The rows; one with bytes that are not text is bad."""
    for number, cells in rows:
        found = (undecodable(cell, stream) for cell in cells) if isinstance(cells, list) else ()
        yield number, next(filter(None, found), cells)


def _records(rows: Iterator[tuple[int, Cells]], name: str, columns: Sequence[str], counts: Counter[str]) -> Numbered:
    """Yield (line number, record) of each row below the header. Raises InputError for an unusable header."""
    first = next(rows, None)
    if first is None:
        return
    number, cells = first
    if isinstance(cells, BadRow):
        raise InputError(cells.at(f"{name}, line {number}"))
    header = _Header.of(cells, columns, f"{name}, line {number}")
    if header.given and len(columns) < len(cells):
        counts[f"--columns names {len(columns)} of {len(cells)} columns; the others are not read"] += 1
    nameless = [] if header.given else header.nameless
    for number, cells in chain([first] if header.given else [], rows):
        if isinstance(cells, BadRow):
            yield number, cells
            continue
        if nameless and any("".join(cells[index : index + 1]).strip() for index in nameless):
            counts[NAMELESS] += 1
        yield number, header.record(cells)


@dataclass(frozen=True)
class _Header:
    names: list[str]
    """The names of the columns; empty where a column has none."""
    given: bool = False
    """Whether the names come from --columns, so that the first line is a row."""

    @classmethod
    def of(cls, cells: list[str], columns: Sequence[str], where: str) -> "_Header":
        """The header that the first row is, or that `columns` gives. Raises InputError."""
        if not columns or [cell.strip() for cell in cells[: len(columns)]] == list(columns):
            return cls([cell if cell.strip() else "" for cell in cells])
        if len(columns) > len(cells):
            raise InputError(f"{where}: {len(cells)} cells, but --columns names {len(columns)}: {', '.join(columns)}")
        return cls([*columns, *[""] * (len(cells) - len(columns))], given=True)

    @cached_property
    def nameless(self) -> list[int]:
        return [index for index, name in enumerate(self.names) if not name]

    @cached_property
    def twice(self) -> dict[str, Any]:
        """The columns whose name is not the only one; they have no value."""
        return {name: TWICE for name in self.names if name and self.names.count(name) > 1}

    def record(self, cells: list[str]) -> Entry:
        """The cells by name. Empty cells at the end of the line are no cells too many."""
        if len(cells) < len(self.names) or any(map(str.strip, cells[len(self.names) :])):
            names = ", ".join(visible(name) or "(no name)" for name in self.names)
            whose = "the first line has" if self.given else "the header has"
            return BadRow(f"{len(cells)} cells, but {whose} {len(self.names)}: {names}")
        record: dict[str, Any] = dict(zip(self.names, cells, strict=False))
        if self.nameless:
            del record[""]
        return record | self.twice if self.twice else record


def looks_like_data(names: Iterable[str], records: list[Record]) -> bool:
    """Whether the names of a header look like values: a number, a sentence, or what also stands in a column below it."""
    return any(_VALUE.fullmatch(name) or any(record.get(name) == name for record in records) for name in names)


# --- separators ------------------------------------------------------------------------------------------------------


def _separator(sample: list[str], usual: str) -> str:
    """The separator under which most lines have as many cells as the first one; `usual` where several do."""
    others = [mark for mark in MARKS if mark != usual and sample and mark in sample[0]]
    fits = {mark: _fit(sample, mark) for mark in others and [usual, *others]}
    possible = [usual, *(mark for mark in others if fits[mark][1] > 1)]
    return max(possible, key=lambda mark: (fits[mark][0], fits[mark][1] > 1, mark == usual)) if others else usual


def _fit(sample: list[str], mark: str) -> tuple[float, int]:
    """(fraction of the rows with as many cells as the first one, cells of the first one)."""
    widths = [len(cells) for cells in csv.reader(sample, delimiter=mark, quoting=_quoting(mark != "\t")) if cells]
    return (widths.count(widths[0]) / len(widths), widths[0]) if widths else (0.0, 0)


# --- quotation marks -------------------------------------------------------------------------------------------------


class _Feed(Iterator[str]):
    """Lines for csv.reader. It remembers the lines of the current row, so that they can be read again."""

    def __init__(self, lines: Iterator[str], number: int):
        self.lines, self.number = lines, number
        self.row: list[str] = []
        self.pending: deque[str] = deque()

    def __next__(self) -> str:
        line = self.pending.popleft() if self.pending else next(self.lines)
        self.row.append(line)
        return line

    def end_row(self) -> int:
        """The number of the last line of the row that ends here."""
        self.number += len(self.row)
        self.row.clear()
        return self.number

    def leave_out_line(self) -> int:
        """The number of the first line of the row. Reading continues with the line after it."""
        self.pending.extendleft(reversed(self.row[1:]))
        self.row.clear()
        self.number += 1
        return self.number


def _rows(lines: Iterator[str], separator: str, number: int) -> Iterator[tuple[int, Cells]]:
    """Yield (number of its last line, cells) of each row that is not blank. `number` lines precede `lines`."""
    quoted, width = True, None
    if separator == "\t":
        for line in lines:
            if '"' in line and _QUOTED.search(line):
                sample = [line, *islice(lines, SAMPLE)]
                quoted, lines = _is_quoted(sample, width), chain(sample, lines)
                break
            number += 1
            if content := line.rstrip("\r\n"):
                cells = content.split("\t")
                width = width or len(cells)
                yield number, cells
    feed = _Feed(lines, number)
    while True:
        try:
            for cells in csv.reader(feed, delimiter=separator, quoting=_quoting(quoted), strict=True):
                number = feed.end_row()
                if cells:
                    yield number, cells
            return
        except csv.Error as error:
            reason = "a quotation mark is not closed" if "end of data" in str(error) else visible(str(error))
            yield feed.leave_out_line(), BadRow(reason)


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _is_quoted(sample: list[str], width: int | None) -> bool:
    """Whether cells that begin with a quotation mark are quoted, as pandas and Excel write tab-separated files.

    Otherwise the mark belongs to the text. `sample` are the lines from the first such cell on, `width` is the number of
    cells in the lines before, if there are any.
    """
    plain = [line.rstrip("\r\n").split("\t") for line in sample]
    feed = _Feed(iter(sample), 0)
    spans: list[tuple[int, int]] = []  # (lines, cells) of each quoted row
    reader = csv.reader(feed, delimiter="\t", strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            cells = []
            if feed.number + len(feed.row) == len(sample):  # the sample may end within a cell
                cells = None
        if cells is None:
            break
        spans.append((len(feed.row), len(cells)))
        feed.end_row()
    complete, header = plain[: feed.number], width is None
    width = width or (spans[0][1] if spans else 0)
    fitting = sum(lines for lines, count in spans if count == width)
    fitting_plain = sum(len(cells) == width for cells in complete)
    if fitting != fitting_plain:
        return fitting > fitting_plain
    marked = (cell for cells in complete for cell in cells if cell.startswith('"'))
    doubled = any(cell == '""' or '""' in cell[1:-1] for cell in marked)
    everywhere = header and all(cell.startswith('"') or cell.isdigit() for cell in plain[0])
    return len(spans) == len(complete) and (doubled or everywhere)
