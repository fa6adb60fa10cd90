"""Resolves the values of `--data`: files, folders, globs, standard input, built-in examples and Hub datasets."""

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

from lmtrain.config.data import PairData, Split
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
    read_parallel,
    read_text,
)
from lmtrain.data.json_files import read_json_lines
from lmtrain.data.text_files import guarded
from lmtrain.errors import InputError, suggestion, visible

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
LOCAL_DATASET = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files without rows in the folder of a saved dataset."""

_NUMBERED = re.compile(r"(.+)#(\d+)")


@dataclass(frozen=True)
class Table:
    """A file or a split of a Hub dataset, which can be read repeatedly."""

    name: str
    read: Callable[[], Iterator[tuple[int, Record]]]
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

    def location(self, number: int) -> str:
        """File and line, for messages."""
        return f"{self.name}, {self.unit} {number}"

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return islice(self.read(), self.limit)


def is_stdin(specification: str) -> bool:
    """Whether a `--data` value is standard input: `-`, or `-#N` for its first N rows."""
    return re.fullmatch(r"-(#\d+)?", specification) is not None


def open_tables(specifications: list[str], data: Split, split: str = "train") -> tuple[Table, ...]:
    """The tables that the values of `--data` or `--eval-data` name. Raises InputError."""
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
            f"{visible(specification, 200)}: the name is not UTF-8, so it cannot be saved in a recipe; rename it"
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
        raise InputError(
            f"{visible(path)}: URLs are not supported; download the file, or name a Hub dataset as org/name"
        )
    local = Path(path)
    if local.is_dir():
        return _folder(local, data, split)
    if os.path.lexists(local):
        return [_file(local, data)]
    if parallel := _parallel(path, data):
        return [parallel]
    if has_magic(path):
        matches = sorted(Path(match) for match in glob(path, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        files = [match for match in matches if match.is_file() and format_of(match)]
        if not files:
            raise InputError(f"{path}: no file matches this pattern; the formats are {' '.join(FORMATS)}")
        return [_file(match, data) for match in files]
    folder = LOCAL_DATASET.fullmatch(path)
    if folder and Path(folder["name"]).is_dir() and (folder["config"] or folder["split"]):
        return [_dataset(folder, split)]
    hub = HUB_ID.fullmatch(path)
    if hub and format_of(local) is None:
        return [_dataset(hub, split)]
    parent = local.parent if local.parent.is_dir() else Path()
    similar = suggestion(local.name, [entry.name for entry in parent.iterdir()])
    raise InputError(f"{visible(path, 200)}: no such file or folder{similar}")


def _example(path: str) -> Table:
    name = path.removeprefix("example:")
    if name not in EXAMPLES:
        raise InputError(f"{path}: no such example; available are {', '.join(EXAMPLES)}")
    read, is_text = EXAMPLES[name]
    # The documentation differs between versions of Python.
    return Table(path, read, "line" if is_text else "row", is_text, version=f"{path} {sys.version}")


def _folder(folder: Path, data: Split, split: str) -> list[Table]:
    if (folder / "dataset_dict.json").exists():  # written by DatasetDict.save_to_disk
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        names = ("train",) if split == "train" else (split, "valid", "dev", "test")
        name = next((name for name in names if name in splits), None)
        if name is None:
            raise InputError(f"{folder}: has the splits {', '.join(splits)}; name one: {folder / splits[0]}")
        folder = folder / name
    files = [
        Path(parent, name)
        for parent, folders, names in os.walk(folder)
        if folders.sort() or True  # os.walk follows the order of this list, which differs between file systems
        for name in sorted(names)
        if not name.startswith(".") and name not in METADATA
        if format_of(Path(name)) and Path(parent, name).is_file()
    ]
    # A folder may come from anyone, so files that it links to outside itself are read only if they are named.
    inside = [file for file in files if not file.is_symlink() or _is_inside(file, folder)]
    skipped = (
        f"{folder}: {len(files) - len(inside):,} links lead out of the folder and are skipped; name them to read them"
    )
    if not files:
        raise InputError(f"{folder}: no data in this folder; the formats are {' '.join(FORMATS)}")
    if not inside:
        raise InputError(skipped)
    first, *others = (_file(file, data) for file in inside)
    return [replace(first, notes=(skipped,)) if len(inside) < len(files) else first, *others]


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a link leads into the folder or, in a Hub cache, to the blobs next to its snapshot."""
    target, root = file.resolve(), folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"]
    return any(target.is_relative_to(allowed) for allowed in (root, *blobs))


def _file(path: Path, data: Split) -> Table:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file")
    form = format_of(path) or TEXT[0]  # any other name may be a text file: corpus.ko, wiki_00
    name = str(path)
    if form in PARQUET + ARROW:
        return Table(name, partial(read_columnar, path, form), unit="row", files=(path,))
    return Table(name, partial(guarded, READERS[form], path, data.encoding), is_text=form in TEXT, files=(path,))


def _parallel(stem: str, data: Split) -> Table | None:
    """STEM.de and STEM.en, compressed or not, as one table with the columns `de` and `en`."""
    if not isinstance(data, PairData) or not (data.source_lang and data.target_lang):
        return None
    languages = data.source_lang, data.target_lang
    files = []
    for language in languages:
        candidates = (Path(f"{stem}.{language}{end}") for end in ("", *COMPRESSIONS))
        files.append(next((path for path in candidates if path.is_file()), None))
    found = [file for file in files if file]
    if not found:
        return None
    if len(found) < len(files):
        raise InputError(f"{stem}.{languages[files.index(None)]}: no such file, but {found[0]} exists")
    return Table(stem, partial(read_parallel, found, languages, data.encoding), files=tuple(found))


def _stdin(data: Split) -> Table:
    """Standard input, held in memory to be read repeatedly: JSON Lines if the first line is JSON, else text."""
    content = sys.stdin.buffer.read()
    name = "standard input"
    is_json = _is_json(content.lstrip().partition(b"\n")[0])
    reader = read_json_lines if is_json else read_text
    open_again = partial(io.BytesIO, content)
    return Table(name, partial(reader, open_again, data.encoding, name), is_text=not is_json)


def _dataset(match: re.Match[str], default_split: str) -> Table:
    read = partial(read_dataset, match["name"], match["config"], match["split"] or default_split)
    return Table(match[0], read, unit="row")


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except ValueError:
        return False
