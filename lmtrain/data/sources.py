"""Any `--data` -> tables: files, folders, globs, standard input, examples and hub datasets that can be read row by row."""

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from glob import glob, has_magic
from itertools import chain, islice
from pathlib import Path

from lmtrain.config.data import Split
from lmtrain.data.builtin import EXAMPLES
from lmtrain.data.columns import Record
from lmtrain.data.formats import (
    ARROW,
    COMPRESSIONS,
    FORMATS,
    PARQUET,
    READERS,
    TEXT,
    format_of,
    read_columnar,
    read_dataset,
    read_json_lines,
    read_parallel,
    read_text,
)
from lmtrain.data.text_files import guarded
from lmtrain.errors import InputError, suggestion, visible

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
LOCAL_DATASET = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a saved dataset that hold no rows."""

_NUMBERED = re.compile(r"(.+)#(\d+)")


@dataclass(frozen=True)
class Table:
    """One file, or one split of a hub dataset, that can be read any number of times."""

    name: str
    read: Callable[[], Iterator[tuple[int, Record]]]
    """Yields (number, record); the number is a line of the file, or a row where there are no lines."""
    unit: str = "line"
    is_text: bool = False
    limit: int | None = None
    source: int = 0
    """Which of the `--data` arguments it comes from."""
    files: tuple[Path, ...] = ()
    """What its rows are read from, where these are files: their content is its identity."""
    version: str | None = None
    """Its identity where there is no file: None for what may be other rows at any time."""
    notes: tuple[str, ...] = ()
    """What to say about where it comes from."""

    def place(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return islice(self.read(), self.limit)


def is_stdin(specification: str) -> bool:
    """Whether it names standard input: `-`, or `-#N` for its first rows."""
    return re.fullmatch(r"-(#\d+)?", specification) is not None


def open_tables(specifications: list[str], data: Split, split: str = "train") -> tuple[Table, ...]:
    """The tables that the `--data` or `--eval-data` arguments name. Raises InputError."""
    return tuple(
        replace(table, source=source)
        for source, specification in enumerate(specifications)
        for table in _resolve(specification, data, split)
    )


def _resolve(specification: str, data: Split, split: str) -> list[Table]:
    try:
        specification.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{visible(specification, 200)}: the name is no UTF-8, and could not be written down; rename it"
        ) from None
    numbered = None if Path(specification).exists() else _NUMBERED.fullmatch(specification)
    path, limit = (numbered[1], int(numbered[2])) if numbered else (specification, None)
    tables = list(_tables(path, data, split))
    if limit is None:
        return tables
    if len(tables) == 1:
        return [replace(tables[0], limit=limit)]
    files = tuple(file for table in tables for file in table.files)
    notes = tuple(note for table in tables for note in table.notes)
    first, whole = tables[0], lambda: chain.from_iterable(tables)
    return [Table(path, whole, first.unit, first.is_text, limit, files=files, notes=notes)]


def _tables(path: str, data: Split, split: str) -> Iterable[Table]:
    if path == "-":
        return [_stdin(data)]
    if path.startswith("example:"):
        return [_example(path)]
    if "://" in path:
        raise InputError(f"{visible(path)}: addresses are not read; download the file, or name a hub dataset org/name")
    there = Path(path)
    if there.is_dir():
        return _folder(there, data, split)
    if os.path.lexists(there):
        return [_file(there, data)]
    if parallel := _parallel(path, data):
        return [parallel]
    if has_magic(path):
        matches = sorted(Path(match) for match in glob(path, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        files = [match for match in matches if match.is_file() and format_of(match)]
        if not files:
            raise InputError(f"{path}: no file fits this pattern; the formats are {' '.join(FORMATS)}")
        return [_file(match, data) for match in files]
    known_suffix = format_of(there) is not None
    local = LOCAL_DATASET.fullmatch(path)
    if local and Path(local["name"]).is_dir() and (local["config"] or local["split"]):
        return [_dataset(local, split)]
    hub = HUB_ID.fullmatch(path)
    if hub and not known_suffix:
        return [_dataset(hub, split)]
    parent = there.parent if there.parent.is_dir() else Path()
    near = suggestion(there.name, [entry.name for entry in parent.iterdir()])
    raise InputError(f"{visible(path, 200)}: no such file or folder{near}")


def _example(path: str) -> Table:
    name = path.removeprefix("example:")
    if name not in EXAMPLES:
        raise InputError(f"{path}: no such example; there are {', '.join(EXAMPLES)}")
    read, is_text = EXAMPLES[name]
    # Python's own documentation is another text in another Python.
    return Table(path, read, "line" if is_text else "row", is_text, version=f"{path} {sys.version}")


def _folder(folder: Path, data: Split, split: str) -> list[Table]:
    if (folder / "dataset_dict.json").exists():  # as datasets' save_to_disk writes several splits
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        wanted = next((s for s in (split, "valid", "dev", "test") if s in splits), None) if split != "train" else split
        if wanted not in splits:
            raise InputError(f"{folder}: has the splits {', '.join(splits)}; name one: {folder / splits[0]}")
        folder = folder / wanted
    files = [
        Path(parent, name)
        for parent, folders, names in os.walk(folder)
        if folders.sort() or True  # os.walk goes where this list says: sorted, so that the order is the same anywhere
        for name in sorted(names)
        if not name.startswith(".") and name not in DESCRIPTIONS
        if format_of(Path(name)) and Path(parent, name).is_file()
    ]
    # A folder may come from anybody; what it links to outside of itself is read only if it is named.
    inside = [file for file in files if not file.is_symlink() or _is_inside(file, folder)]
    left = (
        f"{folder}: {len(files) - len(inside):,} links lead out of the folder and are not read; name them to read them"
    )
    if not inside:
        formats = f"no data in this folder; the formats are {' '.join(FORMATS)}"
        raise InputError(left if files else f"{folder}: {formats}")
    first, *others = (_file(file, data) for file in inside)
    return [replace(first, notes=(left,)) if len(inside) < len(files) else first, *others]


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a link leads into the folder, or (the hub's cache of datasets) to the blobs beside its snapshot."""
    target, whole = file.resolve(), folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (whole, *whole.parents) if parent.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (whole, *blobs))


def _file(path: Path, data: Split) -> Table:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file")
    form = format_of(path) or TEXT[0]  # corpus.ko, wiki_00: whatever is text can be read as text
    name = str(path)
    if form in PARQUET + ARROW:
        return Table(name, partial(read_columnar, path, form), unit="row", files=(path,))
    return Table(name, partial(guarded, READERS[form], path, data.encoding), is_text=form in TEXT, files=(path,))


def _parallel(stem: str, data: Split) -> Table | None:
    """STEM.de and STEM.en, compressed or not, as one table with the columns de and en."""
    languages = getattr(data, "source_lang", None), getattr(data, "target_lang", None)
    if not all(languages):
        return None
    candidates = [[Path(f"{stem}.{language}{end}") for end in ("", *COMPRESSIONS)] for language in languages]
    found = [next((path for path in paths if path.is_file()), None) for paths in candidates]
    if not any(found):
        return None
    for path, language in zip(found, languages, strict=True):
        if path is None:
            raise InputError(f"{stem}.{language}: no such file, though its twin is there")
    return Table(stem, partial(read_parallel, found, languages, data.encoding), files=tuple(found))


def _stdin(data: Split) -> Table:
    """Standard input, kept in memory: it can be read only once. JSON lines where the first line is one, else text."""
    content = sys.stdin.buffer.read()
    name = "standard input"
    is_json = _is_json(content.lstrip().partition(b"\n")[0])
    reader = read_json_lines if is_json else read_text
    open_again = partial(io.BytesIO, content)
    return Table(name, partial(reader, open_again, data.encoding, name), is_text=not is_json)


def _dataset(match: re.Match[str], default_split: str) -> Table:
    return Table(
        match[0], partial(read_dataset, match["name"], match["config"], match["split"] or default_split), "row"
    )


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except ValueError:
        return False
