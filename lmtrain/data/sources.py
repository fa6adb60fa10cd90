"""Resolves the values of `--data`: files, folders, globs, standard input, built-in examples and Hub datasets."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from glob import has_magic
from itertools import chain
from pathlib import Path

from lmtrain.config.data import Split
from lmtrain.config.evaluation_sets import name_and_source
from lmtrain.data import folders, tables
from lmtrain.data.builtin import EXAMPLES
from lmtrain.data.readers import parallel
from lmtrain.data.readers.columnar import read_dataset
from lmtrain.data.readers.formats import format_of
from lmtrain.data.readers.json_splits import rows_of_split
from lmtrain.data.remarks import Remarks
from lmtrain.data.splits import NoSplits
from lmtrain.data.tables import STDIN, Table, is_stdin
from lmtrain.errors import InputError, UsageError, suggestion, visible

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
LOCAL_DATASET = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

_NUMBERED = re.compile(r"(.+)#(\d+)")


def open_tables(specifications: list[str], data: Split, split: str = "train") -> tuple[Table, ...]:
    """The tables that the values of `--data` or `--eval-data` name. Raises InputError.

    Standard input is read here; its table can be read repeatedly.
    """
    if sum(map(is_stdin, specifications)) > 1:
        raise UsageError(f"{STDIN} can be read only once; name it once")
    named = [name_and_source(specification) for specification in specifications]
    return tuple(
        replace(table, source=source, evaluation_set=name)
        for source, (name, specification) in enumerate(named)
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
    found = list(_tables(path, data, split))
    if limit is None:
        return found
    if len(found) == 1:
        return [replace(found[0], limit=limit)]
    first, whole = found[0], lambda: chain.from_iterable(found)
    return [
        Table(
            path,
            whole,
            first.unit,
            first.is_text,
            limit,
            files=tuple(file for table in found for file in table.files),
            notes=tuple(note for table in found for note in table.notes),
            remarks=tuple(remark for table in found for remark in table.remarks),
        )
    ]


def _tables(path: str, data: Split, split: str) -> Iterable[Table]:
    if path == "-":
        return [tables.of_stdin(data)]
    if path.startswith("example:"):
        return [_example(path)]
    if "://" in path:
        raise InputError(
            f"{visible(path)}: URLs are not supported; download the file, or name a Hub dataset as org/name"
        )
    local = Path(path)
    if local.is_dir():
        return _all(folders.in_folder(local, split, False, data.encoding), data, split)
    if os.path.lexists(local):
        return [_file(local, data, split)]
    if table := _parallel(path, data):
        return [table]
    if has_magic(path):
        return _all(folders.by_pattern(path, data.encoding), data, split)
    named = LOCAL_DATASET.fullmatch(path)
    if named and Path(named["name"]).is_dir() and (named["config"] or named["split"]):
        return _split_of_folder(named, data, split)
    if named and Path(named["name"]).is_file() and named["split"] and not named["config"]:
        return [_file(Path(named["name"]), data, named["split"], exact=True)]
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


def _file(path: Path, data: Split, split: str, *, exact: bool = False) -> Table:
    """The table of a file; of a JSON document that holds several splits, one: with `exact`, that of this name."""
    table = tables.of_file(path, data)
    if table.is_document:
        counts = table.remarks[0].counts
        return replace(table, read=partial(rows_of_split, table.read, split, exact, table.name, data.columns, counts))
    if exact:
        raise InputError(f"{visible(table.name)}: holds no splits; name it without @{visible(split)}")
    return table


def _all(found: folders.Files, data: Split, split: str) -> list[Table]:
    first, *others = (_file(path, data, split) for path in found.paths)
    return [replace(first, notes=(*found.all_notes(), *first.notes)), *others]


def _split_of_folder(match: re.Match[str], data: Split, split: str) -> list[Table]:
    """FOLDER@split by the names of its files; with a configuration, or without such names, as datasets finds it."""
    if match["config"]:
        return [_dataset(match, split)]
    try:
        return _all(folders.in_folder(Path(match["name"]), match["split"], True, data.encoding), data, match["split"])
    except NoSplits:
        return [_dataset(match, split)]


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


def _dataset(match: re.Match[str], default_split: str) -> Table:
    read = partial(read_dataset, match["name"], match["config"], match["split"] or default_split)
    return Table(match[0], read, unit="row")
