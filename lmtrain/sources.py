"""Any `--data` -> rows, with the file and line of each."""

import hashlib
import io
import json
import os
import random
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob, has_magic
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lmtrain.columns import BadRow, Record, Selection, choose
from lmtrain.errors import InputError, UsageError, suggestion, visible
from lmtrain.examples import EXAMPLES
from lmtrain.readers import (
    ARROW,
    COMPRESSIONS,
    FORMATS,
    PARQUET,
    READERS,
    TEXT,
    format_of,
    guarded,
    read_columnar,
    read_dataset,
    read_json_lines,
    read_parallel,
    read_text,
)
from lmtrain.recipe import Data

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
LOCAL_DATASET = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

LONGEST_PIECE = 20_000
"""Characters: a longer line of running text is tokenised in pieces, cut before white space."""

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

    def place(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        for taken, numbered in enumerate(self.read()):
            if taken == self.limit:
                return
            yield numbered


@dataclass(frozen=True)
class Rows:
    """What is left of the data once its usable values are picked out.

    `values[i]` is a string (text), two strings (prompt), two or more (pairs: source, references) or a list of messages;
    it stands in `places[i]` = (table, number). Rows of one `groups[i]` stay together when a part is held out. A table in `last_numbers` is
    running text: its values follow one another as one document, up to that number.
    """

    kind: str
    tables: tuple[Table, ...]
    values: list[Any]
    places: list[tuple[int, int]]
    groups: list[int]
    last_numbers: dict[int, int]
    rows_empty: int = 0
    rows_bad: int = 0
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Rows with something in them; the pieces of one long line are one row."""
        return sum(place != before for place, before in zip(self.places, [None, *self.places], strict=False))

    def place(self, index: int) -> str:
        table, number = self.places[index]
        return self.tables[table].place(number)

    def texts(self) -> Iterator[str]:
        """Every text of every row, for training a tokenizer."""
        for value in self.values:
            if isinstance(value, str):
                yield value
            elif isinstance(value, tuple):
                yield from value
            else:
                yield from (message["content"] for message in value)

    def documents(self) -> Iterator[range]:
        """The rows of each document: one row, or an unbroken stretch of running text."""
        start = 0
        for index in range(1, len(self.values) + 1):
            if index == len(self.values) or not self._continues(index):
                yield range(start, index)
                start = index

    def ends(self, index: int) -> bool:
        """Whether a document really ends with this row, rather than before a stretch that was held out."""
        table, number = self.places[index]
        return number == self.last_numbers.get(table, number)

    def count(self, document: range) -> int:
        """Rows in a document; the pieces of one long line are one row."""
        return len({self.places[index] for index in document})

    def _continues(self, index: int) -> bool:
        (table, number), (table_before, number_before) = self.places[index], self.places[index - 1]
        return table in self.last_numbers and table == table_before and number - number_before <= 1

    def subset(self, indices: list[int]) -> "Rows":
        return replace(
            self,
            values=[self.values[i] for i in indices],
            places=[self.places[i] for i in indices],
            groups=[self.groups[i] for i in indices],
        )

    def fingerprint(self) -> str:
        """sha256 over all values in order."""
        digest = hashlib.sha256()
        for value in self.values:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()


# --- specification -> tables -----------------------------------------------------------------------------------------


def is_stdin(specification: str) -> bool:
    """Whether it names standard input: `-`, or `-#N` for its first rows."""
    return re.fullmatch(r"-(#\d+)?", specification) is not None


def open_tables(specifications: list[str], data: Data, split: str = "train") -> tuple[Table, ...]:
    """The tables that the `--data` or `--eval-data` arguments name. Raises InputError."""
    tables = [table for specification in specifications for table in _resolve(specification, data, split)]
    return tuple(tables)


def _resolve(specification: str, data: Data, split: str) -> list[Table]:
    numbered = None if Path(specification).exists() else _NUMBERED.fullmatch(specification)
    path, limit = (numbered[1], int(numbered[2])) if numbered else (specification, None)
    tables = list(_tables(path, data, split))
    if limit is None:
        return tables
    if len(tables) == 1:
        return [replace(tables[0], limit=limit)]
    return [Table(path, lambda: chain.from_iterable(tables), tables[0].unit, tables[0].is_text, limit)]


def _tables(path: str, data: Data, split: str) -> Iterable[Table]:
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
    return Table(path, read, unit="line" if is_text else "row", is_text=is_text)


def _folder(folder: Path, data: Data, split: str) -> list[Table]:
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
    if not files:
        raise InputError(f"{folder}: no data in this folder; the formats are {' '.join(FORMATS)}")
    return [_file(file, data) for file in files]


def _file(path: Path, data: Data) -> Table:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file")
    form = format_of(path) or TEXT[0]  # corpus.ko, wiki_00: whatever is text can be read as text
    name = str(path)
    if form in PARQUET + ARROW:
        return Table(name, partial(read_columnar, path, form), unit="row")
    return Table(name, partial(guarded, READERS[form], path, data.encoding), is_text=form in TEXT)


def _parallel(stem: str, data: Data) -> Table | None:
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
    return Table(stem, partial(read_parallel, found, languages, data.encoding))


def _stdin(data: Data) -> Table:
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


# --- tables -> rows --------------------------------------------------------------------------------------------------


def load(specifications: list[str], data: Data, split: str = "train") -> Rows:
    """Read everything that `specifications` name and pick out the usable values.

    Raises InputError for data that is not there, broken, without the columns meant, or without a usable row.
    """
    tables = open_tables(specifications, data, split)
    rows = Rows("", tables, [], [], [], {})
    for index, table in enumerate(tables):
        rows = _read_table(rows, index, table, data)
    if not any(value.strip() if isinstance(value, str) else value for value in rows.values):
        counted = f"{rows.rows_empty} empty" + (f", {rows.rows_bad} bad" if rows.rows_bad else "")
        raise InputError(f"{', '.join(visible(s, 200) for s in specifications)}: no usable text ({counted} rows)")
    return replace(rows, groups=_passages(rows), notes=[*rows.notes, *_several(rows)])


def _several(rows: Rows) -> list[str]:
    count = sum(len(value) > 2 for value in rows.values) if rows.kind == "pairs" else 0
    return [f"{count:,} rows have several targets: the first is learnt, metrics of text take all"] if count else []


def _read_table(rows: Rows, index: int, table: Table, data: Data) -> Rows:
    selection: Selection | None = None
    paragraph = data.unit == "paragraph" and table.is_text
    numbered = iter(_paragraphs(table) if paragraph else table)
    peeked = list(islice(numbered, 100))  # a column may be missing in some rows, the first one too
    columns = {name: value for _, record in reversed(peeked) for name, value in record.items()}
    for number, record in chain(peeked, numbered):
        if selection is None:
            selection = choose(columns, data, table.name)
            if rows.kind and selection.kind != rows.kind:
                raise InputError(f"{table.name}: holds {selection.kind} rows, the data before it {rows.kind} rows")
            rows = replace(rows, kind=selection.kind, notes=[*rows.notes, *_note(selection, table)])
        if table.is_text and data.unit == "document":
            for piece in _pieces(record["text"]):
                rows.values.append(piece)
                rows.places.append((index, number))
            rows.last_numbers[index] = number
            continue
        try:
            value = selection.value(record)
        except BadRow as problem:
            if data.on_bad == "error":
                raise InputError(f"{table.place(number)}, {problem}; --on-bad drop leaves such rows out") from None
            rows = replace(rows, rows_bad=rows.rows_bad + 1)
            continue
        if value is None:
            rows = replace(rows, rows_empty=rows.rows_empty + 1)
            continue
        rows.values.append(value.rstrip("\n") if table.is_text else value)
        rows.places.append((index, number))
    return rows


def _note(selection: Selection, table: Table) -> list[str]:
    if table.is_text or not selection.found:
        return []
    return [f"{table.name}: using column{'s' if len(selection.paths) > 1 else ''} {selection}"]


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


def _pieces(line: str) -> Iterator[str]:
    start = 0
    while len(line) - start > LONGEST_PIECE:
        cut = line.rfind(" ", start + 1, start + LONGEST_PIECE)
        cut = cut if cut > 0 else start + LONGEST_PIECE
        yield line[start:cut]
        start = cut
    yield line[start:]


def _passages(rows: Rows) -> list[int]:
    """Every row a group; but running text, which would be torn to single lines, some hundred passages."""
    running = [len(v) for v, (table, _) in zip(rows.values, rows.places, strict=True) if table in rows.last_numbers]
    enough = min(max(sum(running) // 100, 1), 4000)
    groups: list[int] = []
    group = size = 0
    before = None
    for value, (table, _) in zip(rows.values, rows.places, strict=True):
        if before is not None and (table not in rows.last_numbers or table != before or size >= enough):
            group, size = group + 1, 0
        groups.append(group)
        size += len(value)
        before = table
    return groups


def hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(rows to train on, rows to evaluate on): a seeded, shuffled share of the groups, at least one.

    Each part keeps the order of the data. Raises InputError where there is only one group.
    """
    groups = sorted(set(rows.groups))
    if len(groups) < 2:
        raise InputError(f"{rows.tables[0].name}: too little to hold a part out; give --eval-data, or --val-split 0")
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    held = set(random.Random(seed).sample(groups, count))
    sides: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(rows.groups):
        sides[group in held].append(index)
    return rows.subset(sides[0]), replace(rows.subset(sides[1]), rows_empty=0, rows_bad=0)


def held_out(data: Data, seed: int) -> Rows:
    """What a run evaluates on. Raises UsageError where it holds nothing out, InputError as `read` does."""
    if any(map(is_stdin, (*data.train, *data.eval))):
        raise UsageError("the run read standard input, which is gone; name something with --data")
    _, rows = read(data, seed)
    if rows is None:
        raise UsageError("nothing was held out in this run; name something with --data")
    return rows


def read(data: Data, seed: int) -> tuple[Rows, Rows | None]:
    """(rows to train on, rows to evaluate on), as the recipe's data section says.

    Raises InputError for data that cannot be used, UsageError where only one side can be read from standard input.
    """
    if sum(map(is_stdin, (*data.train, *data.eval))) > 1:
        raise UsageError("standard input can be read only once; save one of the two to a file")
    train = load(data.train, data)
    if data.eval:
        held = load(data.eval, data, split="validation")
        if held.kind != train.kind:
            raise InputError(f"--eval-data holds {held.kind} rows, --data {train.kind} rows")
        return train, held
    return hold_out(train, data.val_split, seed) if data.val_split else (train, None)
