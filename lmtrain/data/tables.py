"""A file, standard input or a split of a Hub dataset as a table: its format, by name or by content, and its reader."""

import io
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lmtrain.config.data import Split
from lmtrain.config.evaluation_sets import source_of
from lmtrain.data.columns import Entry
from lmtrain.data.layouts import header_hint, is_row, named_columns
from lmtrain.data.readers.columnar import read_columnar
from lmtrain.data.readers.conll import is_tagged
from lmtrain.data.readers.contents import by_name, recognise
from lmtrain.data.readers.formats import ARROW, CSV, JSON, JSON_LINES, PARQUET, READERS, TEXT, TSV, format_of
from lmtrain.data.readers.nested_rows import flattened
from lmtrain.data.readers.text_files import LONGEST_NAME, first_lines, guarded, open_bytes, printable, start_of
from lmtrain.data.remarks import Remarks, told
from lmtrain.errors import InputError, visible

STDIN = "standard input"


def is_stdin(specification: str) -> bool:
    """Whether a `--data` value is standard input: `-`, or `-#N` for its first N rows."""
    return re.fullmatch(r"-(#\d+)?", source_of(specification)) is not None


@dataclass(frozen=True)
class Table:
    """A file or a split of a Hub dataset, which can be read repeatedly."""

    name: str
    read: Callable[[], Iterator[tuple[int, Entry]]]
    """Yields (line number, record), or (row number, record) where there are no lines."""
    unit: str = "line"
    is_text: bool = False
    limit: int | None = None
    source: int = 0
    """Index of the `--data` argument that it comes from."""
    evaluation_set: str = ""
    """Name of the evaluation set that it belongs to, if it has one."""
    files: tuple[Path, ...] = ()
    """The files that it is read from. Their content is part of the cache key."""
    version: str | None = None
    """Identifies the content where there are no files; None where the content may change."""
    notes: tuple[str, ...] = ()
    """Messages about where it comes from."""
    remarks: tuple[Remarks, ...] = ()
    """What there is to say about its files, complete when it has been read."""
    has_header: bool = False
    """Whether its first line gives the names of the columns."""
    hint: str = ""
    """What else to say where the columns are not found."""
    is_document: bool = False
    """Whether it is one JSON document, which may hold several splits."""

    def location(self, number: int) -> str:
        """File and line, for messages."""
        return f"{visible(self.name, LONGEST_NAME)}, {self.unit} {number}"

    def __iter__(self) -> Iterator[tuple[int, Entry]]:
        return islice(self.read(), self.limit)


def notes_on(tables: Iterable[Table]) -> list[str]:
    """What there is to say about the tables; complete when they have been read."""
    tables = list(tables)
    notes = [note for table in tables for note in table.notes]
    return [*notes, *told(remarks for table in tables for remarks in table.remarks)]


def of_stdin(data: Split) -> Table:
    """Standard input, held in memory to be read repeatedly."""
    if sys.stdin is None:
        raise InputError(f"{STDIN} is closed; name a file with --data")
    content = sys.stdin.buffer.read()
    opener = partial(io.BytesIO, content)

    def read(reader: Callable[..., Any]) -> Iterator[tuple[int, Entry]]:
        return iter(reader(opener, data.encoding, STDIN))

    return _by_content(STDIN, opener, read, data)


def of_file(path: Path, data: Split) -> Table:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file")
    name, form = str(path), format_of(path)
    if form is None and (what := by_name(path.name)):
        raise InputError(f"{printable(path)}: {what}")
    if form is not None and form in PARQUET + ARROW:
        return Table(name, partial(read_columnar, path, form), unit="row", files=(path,))

    def read(reader: Callable[..., Any]) -> Iterator[tuple[int, Entry]]:
        return guarded(reader, path, data.encoding)

    opener = partial(open_bytes, path)
    if form in TSV and data.unit == "sentence" and not named_columns(data):
        form = TEXT[0] if is_tagged(first_lines(start_of(opener), data.encoding).split("\n")) else form
        table = _table(name, form, read, data)
    elif form is not None and form not in TEXT:
        table = _table(name, form, read, data)
    else:
        table = _by_content(name, opener, read, data)
    return replace(table, files=(path,))


def _by_content(
    name: str,
    opener: Callable[[], IO[bytes]],
    read: Callable[[Callable[..., Any]], Iterator[tuple[int, Entry]]],
    data: Split,
) -> Table:
    """A file that may be text (its name does not tell: corpus.ko, wiki_00), or JSON or a table instead."""
    is_conll = data.unit == "sentence"
    takes_text = "text" in data.kinds or is_conll
    content = recognise(first_lines(start_of(opener), data.encoding), named_columns(data), takes_text, is_conll)
    is_text = content.form in TEXT
    if is_text and not takes_text:
        about = f" and {content.remark.split(',')[0]}" if content.remark else ""
        raise InputError(
            f"{visible(name, 200)}: is text{about}, but rows of two columns are needed: a table, JSON lines, or the STEM "
            "of two files of parallel lines"
        )
    return _table(name, content.form, read, data, content.remark)


def _table(
    name: str,
    form: str,
    read: Callable[[Callable[..., Any]], Iterator[tuple[int, Entry]]],
    data: Split,
    remark: str = "",
) -> Table:
    """The table of a text file in this format. `read` calls a reader on it."""
    remarks = Remarks(name, (remark,) if remark else ())
    rows: Callable[[], Iterator[tuple[int, Entry]]] = partial(read, _reader(form, data, remarks.counts))
    if form in JSON + JSON_LINES:
        rows = partial(flattened, rows, remarks.counts)
    has_header = form in CSV + TSV and not data.columns
    hint = header_hint(data.kinds) if has_header else ""
    unit = "row" if form in JSON else "line"
    return Table(
        name,
        rows,
        unit,
        form in TEXT,
        remarks=(remarks,),
        has_header=has_header,
        hint=hint,
        is_document=form in JSON,
    )


def _reader(form: str, data: Split, counts: Counter[str]) -> Callable[..., Any]:
    reader = READERS[form]
    if form in TEXT:
        return partial(reader, counts=counts)
    if form in CSV + TSV:
        return partial(reader, columns=data.columns, counts=counts)
    return partial(reader, is_row=partial(is_row, data), columns=data.columns)
