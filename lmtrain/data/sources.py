"""Resolves the values of `--data`: files, folders, globs, standard input, built-in examples and Hub datasets."""

import io
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from lmtrain.config.data import Split
from lmtrain.data import folders
from lmtrain.data.builtin import EXAMPLES
from lmtrain.data.columns import Entry
from lmtrain.data.layouts import header_hint, is_row, named_columns
from lmtrain.data.readers import parallel
from lmtrain.data.readers.columnar import read_columnar, read_dataset
from lmtrain.data.readers.conll import is_tagged
from lmtrain.data.readers.contents import by_name, recognise
from lmtrain.data.readers.formats import ARROW, CSV, JSON, JSON_LINES, PARQUET, READERS, TEXT, TSV, format_of
from lmtrain.data.readers.nested_rows import flattened
from lmtrain.data.readers.text_files import LONGEST_NAME, first_lines, guarded, open_bytes, printable, start_of
from lmtrain.data.remarks import Remarks, told
from lmtrain.data.splits import NoSplits
from lmtrain.errors import InputError, UsageError, suggestion, visible

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
LOCAL_DATASET = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

STDIN = "standard input"

_NUMBERED = re.compile(r"(.+)#(\d+)")


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

    def location(self, number: int) -> str:
        """File and line, for messages."""
        return f"{visible(self.name, LONGEST_NAME)}, {self.unit} {number}"

    def __iter__(self) -> Iterator[tuple[int, Entry]]:
        return islice(self.read(), self.limit)


def is_stdin(specification: str) -> bool:
    """Whether a `--data` value is standard input: `-`, or `-#N` for its first N rows."""
    return re.fullmatch(r"-(#\d+)?", specification) is not None


def open_tables(specifications: list[str], data: Split, split: str = "train") -> tuple[Table, ...]:
    """The tables that the values of `--data` or `--eval-data` name. Raises InputError.

    Standard input is read here; its table can be read repeatedly.
    """
    if sum(map(is_stdin, specifications)) > 1:
        raise UsageError(f"{STDIN} can be read only once; name it once")
    return tuple(
        replace(table, source=source)
        for source, specification in enumerate(specifications)
        for table in _resolve(specification, data, split)
    )


def notes_on(tables: Iterable[Table]) -> list[str]:
    """What there is to say about the tables; complete when they have been read."""
    tables = list(tables)
    notes = [note for table in tables for note in table.notes]
    return [*notes, *told(remarks for table in tables for remarks in table.remarks)]


def _resolve(specification: str, data: Split, split: str) -> list[Table]:
    try:
        specification.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{visible(specification, 200)}: the name is not UTF-8, so it cannot be saved in a recipe; rename it"
        ) from None
    numbered = None if Path(specification).exists() else _NUMBERED.fullmatch(specification)
    path, limit = (numbered[1], int(numbered[2])) if numbered else (specification, None)
    tables = list(_tables(path, data, split))
    if limit is None:
        return tables
    if len(tables) == 1:
        return [replace(tables[0], limit=limit)]
    first, whole = tables[0], lambda: chain.from_iterable(tables)
    return [
        Table(
            path,
            whole,
            first.unit,
            first.is_text,
            limit,
            files=tuple(file for table in tables for file in table.files),
            notes=tuple(note for table in tables for note in table.notes),
            remarks=tuple(remark for table in tables for remark in table.remarks),
        )
    ]


def _tables(path: str, data: Split, split: str) -> Iterable[Table]:
    if path == "-":
        return [_stdin(data)]
    if path.startswith("example:"):
        return [_example(path)]
    if "://" in path:
        raise InputError(
            f"{visible(path)}: URLs are not supported; download the file, or name a Hub dataset as org/name"
        )
    local = Path(path)
    if local.is_dir():
        return _all(folders.in_folder(local, split, False, data.encoding), data)
    if os.path.lexists(local):
        return [_file(local, data)]
    if table := _parallel(path, data):
        return [table]
    if has_magic(path):
        return _all(folders.by_pattern(path, data.encoding), data)
    folder = LOCAL_DATASET.fullmatch(path)
    if folder and Path(folder["name"]).is_dir() and (folder["config"] or folder["split"]):
        return _split_of_folder(folder, data, split)
    hub = HUB_ID.fullmatch(path)
    if hub and format_of(local) is None:
        return [_dataset(hub, split)]
    raise InputError(f"{visible(path, 200)}: no such file or folder{_similar(local, data)}")


def _similar(path: Path, data: Split) -> str:
    """A part of the message on a path that does not exist."""
    if found := parallel.others(str(path), data):
        return found
    parent = path.parent if path.parent.is_dir() else Path()
    return suggestion(path.name, [entry.name for entry in parent.iterdir()])


def _example(path: str) -> Table:
    name = path.removeprefix("example:")
    if name not in EXAMPLES:
        raise InputError(f"{path}: no such example; available are {', '.join(EXAMPLES)}")
    read, is_text = EXAMPLES[name]
    # The documentation differs between versions of Python.
    return Table(path, read, "line" if is_text else "row", is_text, version=f"{path} {sys.version}")


def _all(found: folders.Files, data: Split) -> list[Table]:
    first, *others = (_file(path, data) for path in found.paths)
    return [replace(first, notes=(*found.all_notes(), *first.notes)), *others]


def _split_of_folder(match: re.Match[str], data: Split, split: str) -> list[Table]:
    """FOLDER@split by the names of its files; with a configuration, or without such names, as datasets finds it."""
    if match["config"]:
        return [_dataset(match, split)]
    try:
        return _all(folders.in_folder(Path(match["name"]), match["split"], True, data.encoding), data)
    except NoSplits:
        return [_dataset(match, split)]


def _file(path: Path, data: Split) -> Table:
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
    return Table(name, rows, unit, form in TEXT, remarks=(remarks,), has_header=has_header, hint=hint)


def _reader(form: str, data: Split, counts: Counter[str]) -> Callable[..., Any]:
    reader = READERS[form]
    if form in TEXT:
        return partial(reader, counts=counts)
    if form in CSV + TSV:
        return partial(reader, columns=data.columns, counts=counts)
    return partial(reader, is_row=partial(is_row, data)) if form in JSON + JSON_LINES else reader


def _parallel(stem: str, data: Split) -> Table | None:
    endings = parallel.sides(data)
    files = parallel.find(stem, endings) if endings else []
    if not endings or not files:
        return None
    names = endings[0][0], endings[1][0]
    short = [file.name for file, name in zip(files, names, strict=True) if f".{name}" not in file.name]
    said = (f"its lines are those of {' and '.join(str(file) for file in files)}",) if short else ()
    remarks = [Remarks(str(file)) for file in files]
    read = partial(parallel.read_parallel, files, names, data.encoding, [remark.counts for remark in remarks])
    return Table(stem, read, files=tuple(files), remarks=(Remarks(stem, said), *remarks))


def _stdin(data: Split) -> Table:
    """Standard input, held in memory to be read repeatedly."""
    if sys.stdin is None:
        raise InputError(f"{STDIN} is closed; name a file with --data")
    content = sys.stdin.buffer.read()
    opener = partial(io.BytesIO, content)

    def read(reader: Callable[..., Any]) -> Iterator[tuple[int, Entry]]:
        return iter(reader(opener, data.encoding, STDIN))

    return _by_content(STDIN, opener, read, data)


def _dataset(match: re.Match[str], default_split: str) -> Table:
    read = partial(read_dataset, match["name"], match["config"], match["split"] or default_split)
    return Table(match[0], read, unit="row")
