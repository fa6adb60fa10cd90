"""What a recipe trains and evaluates on: read when it is first asked for, held out, and checked for rows in both."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest, sha256
from itertools import groupby
from pathlib import Path

from lmtrain.config.data import Data, Split
from lmtrain.data.cache import Cache
from lmtrain.data.ledger import Ledger
from lmtrain.data.reading import Position, Reading, chunks, load
from lmtrain.data.rows import Rows
from lmtrain.data.sources import Table, is_stdin, open_tables
from lmtrain.errors import InputError, UsageError, visible


@dataclass(frozen=True)
class Splits:
    """The rows of both sides, how many rows of evaluation also are trained, and how many of training are repetitions."""

    train: Rows
    held_out: Rows | None
    shared_rows: int
    duplicate_rows: int

    def warnings(self, on_leak: str) -> list[str]:
        same = sum(value[0] == value[1] for value in self.train.values) if self.train.kind == "pairs" else 0
        copies = [f"{same:,} of {len(self.train):,} pairs have one text as source and target: are the columns right?"]
        return (copies if same > len(self.train) / 2 else []) + self._leaks(on_leak)

    def _leaks(self, on_leak: str) -> list[str]:
        if not self.shared_rows:
            return []
        done = "they are left out of training" if on_leak == "drop" else "the evaluation knows them from training"
        return [f"{self.shared_rows:,} evaluation rows also are training rows: {done} (--on-leak warn, drop or error)"]


class Corpus:
    """The two sides of a recipe's data section, read once, and only when somebody wants to see a row."""

    def __init__(self, data: Data, seed: int, cache: Cache):
        self.data, self.seed, self.cache = data, seed, cache
        if sum(map(is_stdin, (*data.train, *data.eval))) > 1:
            raise UsageError("standard input can be read only once; save one of the two to a file")

    @cached_property
    def splits(self) -> Splits:
        """Of a stream, `train` is its first chunk. Raises InputError for data that cannot be used."""
        if self.data.streaming:
            held = load(self.data.eval, self.data, "validation") if self.data.eval else None
            return _of_one_kind(Splits(self._first_chunk(), held, 0, 0))
        return checked(*read(self.data, self.seed), self.data.on_leak)

    def forget(self) -> bool:
        """Let go of the rows, if they have been read; whoever asks for them again has them read again."""
        return self.__dict__.pop("splits", None) is not None

    def check(self) -> None:
        """Read the rows if nobody has read them before, to be told what is wrong with them. Raises InputError."""
        assert self.kind

    @property
    def kind(self) -> str:
        """The kind of rows. They are read for it, unless the same have been read before and found to be sound."""
        if self.key is None:
            return self.splits.train.kind
        key = self.cache.key("rows", self.key)
        found = self.cache.remember(key, lambda: ({}, {"kind": self.splits.train.kind}), self.unchanged)
        return str(found[1]["kind"])

    @cached_property
    def reading(self) -> Reading:
        """The training data as a stream."""
        return Reading(open_tables(self.data.train, self.data), self.data)

    def _first_chunk(self) -> Rows:
        """The first one that holds more than white space."""
        for rows, _ in chunks(self.reading, Position(), self.data.shuffle_buffer):
            if rows.has_text():
                return rows
        raise InputError(f"{', '.join(visible(name, 200) for name in self.data.train)}: no usable text")

    @cached_property
    def key(self) -> str | None:
        """What the rows are a function of, as a hash of the files' contents; None where that cannot be told."""
        if self.data.streaming or self.cache.folder is None or self._tables is None:
            return None
        digest = sha256(f"{self.data.model_dump_json(exclude={'train', 'eval'})} {self.seed}".encode())
        self._at_key = self._stamps()
        for side, tables in enumerate(self._tables):
            for table in tables:
                digest.update(f"\n{side} {table.source} {table.limit} {table.is_text} {table.version}".encode())
                for file in table.files:
                    digest.update(_content(file) + "".join(file.suffixes).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def unchanged(self) -> bool:
        """Whether no file has been written to since its content was hashed: else rows of now are not those of the key."""
        return self._stamps() == self._at_key

    def size_of_files(self) -> list[int]:
        """Bytes of the files of both sides: of a stream all that can be known of its content beforehand."""
        return [size for size, _ in self._stamps().values()]

    @cached_property
    def _tables(self) -> tuple[tuple[Table, ...], tuple[Table, ...]] | None:
        """Those of both sides; None where one has no identity: standard input, a hub dataset."""
        if any(map(is_stdin, (*self.data.train, *self.data.eval))):
            return None
        sides = open_tables(self.data.train, self.data), open_tables(self.data.eval, self.data, "validation")
        return sides if all(table.files or table.version for side in sides for table in side) else None

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        """Size and time of the last change of every file."""
        files = [file for side in self._tables or () for table in side for file in table.files]
        stats = [(file, file.stat()) for file in files if file.exists()]
        return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats}


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return file_digest(stream, "sha256").digest()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def read(data: Split, seed: int) -> tuple[Rows, Rows | None]:
    """(rows to train on, rows to evaluate on), as the recipe's data section says. Raises InputError."""
    train = load(data.train, data)
    if data.eval:
        return train, load(data.eval, data, split="validation")
    return hold_out(train, data.val_split, seed) if data.val_split else (train, None)


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
    return rows.subset(sides[0]), replace(rows.subset(sides[1]), ledgers=tuple(Ledger() for _ in rows.ledgers))


def held_out(data: Data, seed: int) -> Rows:
    """What a run evaluates on. Raises UsageError where it holds nothing out, InputError as `read` does."""
    if any(map(is_stdin, (*data.train, *data.eval))):
        raise UsageError("the run read standard input, which is gone; name something with --data")
    if not (data.eval or data.val_split):
        raise UsageError("nothing was held out in this run; name something with --data")
    rows = load(data.eval, data, "validation") if data.eval else read(data, seed)[1]
    assert rows is not None
    return rows


# --- rows that stand in two places -----------------------------------------------------------------------------------
def checked(train: Rows, held: Rows | None, on_leak: str) -> Splits:
    """Both sides once the rows that stand in both are treated as `on_leak` says. Raises InputError."""
    known = list(_by_group(train))
    repeated = len(known) - len(set(known))
    if held is None:
        return Splits(train, None, 0, repeated)
    seen = set(known)
    leaked = [(position, content) for position, content in enumerate(_by_group(held)) if content in seen]
    if leaked and on_leak == "error":
        others = f", as are {len(leaked) - 1:,} more" if leaked[1:] else ""
        raise InputError(f"{held.place(_first_of_group(held, leaked[0][0]))}: also is in the training data{others}; "
                         "--on-leak drop leaves such rows out of training")  # fmt: skip
    if leaked and on_leak == "drop":
        train = _without(train, {content for _, content in leaked})
    return _of_one_kind(Splits(train, held, len(leaked), repeated))


def _of_one_kind(sides: Splits) -> Splits:
    if sides.held_out is not None and sides.held_out.kind != sides.train.kind:
        raise InputError(f"--eval-data holds {sides.held_out.kind} rows, --data {sides.train.kind} rows")
    return sides


def _by_group(rows: Rows) -> Iterator[int]:
    """A hash of each group: of each row, of running text of each passage."""
    for _, group in groupby(zip(rows.groups, rows.contents(), strict=True), key=lambda pair: pair[0]):
        yield hash(tuple(content for _, content in group))


def _first_of_group(rows: Rows, number: int) -> int:
    starts = (index for index, group in enumerate(rows.groups) if index == 0 or group != rows.groups[index - 1])
    return next(index for position, index in enumerate(starts) if position == number)


def _without(rows: Rows, contents: set[int]) -> Rows:
    """The rows without those groups; what is left out is counted as dropped. Raises InputError if nothing is left."""
    leaked = dict(zip(dict.fromkeys(rows.groups), (content in contents for content in _by_group(rows)), strict=True))
    kept = rows.subset([index for index, group in enumerate(rows.groups) if not leaked[group]])
    if not kept.values:
        raise InputError("every training row is an evaluation row; --on-leak drop leaves nothing to train on")
    for ledger, all_of_it, left in zip(kept.ledgers, rows.per_source(), kept.per_source(), strict=True):
        ledger.rows_dropped += all_of_it - left
    return kept
