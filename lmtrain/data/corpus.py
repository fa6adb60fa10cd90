"""The training and evaluation rows of a recipe: read on first use, split, and checked for leaks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest, sha256
from itertools import groupby
from pathlib import Path

from lmtrain.config.data import Data, Split
from lmtrain.data.cache import Cache
from lmtrain.data.labels import LABELLED, distinct_labels
from lmtrain.data.ledger import Ledger
from lmtrain.data.reading import Position, RowReader, chunks, load
from lmtrain.data.rows import Rows
from lmtrain.data.sources import open_tables
from lmtrain.data.tables import STDIN, Table, is_stdin
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.runtime.processes import world_size

SplitTables = tuple[tuple[Table, ...], tuple[Table, ...]]
"""The tables of the training and of the evaluation data."""


@dataclass(frozen=True)
class Splits:
    """The rows of both splits."""

    train: Rows
    held_out: Rows | None
    """The evaluation rows."""
    shared_rows: int
    """Evaluation rows that also occur in the training data."""
    duplicate_rows: int
    """Training rows that repeat an earlier one."""

    @property
    def notes(self) -> list[str]:
        """What there is to say about the data of both splits."""
        held_out = self.held_out.notes if self.held_out is not None else []
        return list(dict.fromkeys([*self.train.notes, *held_out]))

    def warnings(self, on_leak: str) -> list[str]:
        copies = sum(value[0] == value[1] for value in self.train.values) if self.train.kind == "pairs" else 0
        warnings = [*self.train.warnings]
        if self.held_out is not None:
            warnings += (line for line in self.held_out.warnings if line not in warnings)
        if copies > len(self.train) / 2:
            warnings.append(
                f"{copies:,} of {len(self.train):,} pairs have the same text as source and target; check the columns"
            )
        if self.shared_rows:
            consequence = (
                "; --on-leak drop leaves them out of training"
                if on_leak == "drop"
                else ", so scores may be too good (--on-leak drop leaves them out of training)"
            )
            warnings.append(f"{self.shared_rows:,} evaluation rows also occur in the training data{consequence}")
        return warnings


class Corpus:
    """The splits of a recipe's section `data`, read once and only when needed."""

    def __init__(self, data: Data, seed: int, cache: Cache):
        self.data, self.seed, self.cache = data, seed, cache
        check_stdin(data)
        if data.streaming and any(map(is_stdin, data.train)):
            raise UsageError(
                "--streaming reads the data several times, which standard input does not allow; save it to a file, or drop "
                "--streaming: it is then held in memory"
            )

    @cached_property
    def splits(self) -> Splits:
        """Both splits; the training split of a stream is its first chunk. Raises InputError for unusable data."""
        if self.data.streaming:
            held_out = load(self.data.eval, self.data, tables=self.tables[1]) if self.data.eval else None
            return _require_one_kind(Splits(self._first_chunk(), held_out, 0, 0))
        return check_leaks(*read(self.data, self.seed, self.tables), self.data.on_leak)

    def release_rows(self) -> bool:
        """Free the rows and return whether there were any. Later accesses read them again."""
        return self.__dict__.pop("splits", None) is not None

    def open(self) -> None:
        """Raise InputError for data that is not there."""
        assert self.tables

    def check(self) -> None:
        """Raise InputError for unusable data. Reads the rows, unless the cache shows that they were usable before."""
        assert self.kind

    @cached_property
    def tables(self) -> SplitTables:
        """The tables of both splits. Standard input is read when they are opened, once."""
        return open_splits(self.data)

    @cached_property
    def kind(self) -> str:
        """The kind of the rows, from the cache or by reading them; known from then on."""
        if self.key is None:
            return self.splits.train.kind
        key = self.cache.key("rows", self.key)
        _, document = self.cache.remember(key, lambda: ({}, {"kind": self.splits.train.kind}), self.unchanged)
        return str(document["kind"])

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the training rows, in the order of their class numbers; empty for rows without labels."""
        if self.kind not in LABELLED:
            return []
        return distinct_labels(self.kind, self.splits.train.values)

    @cached_property
    def train_reader(self) -> RowReader:
        """Reads the training data as a stream."""
        return RowReader(self.tables[0], self.data)

    def _first_chunk(self) -> Rows:
        """The first chunk with a row that is not blank."""
        for rows, _ in chunks(self.train_reader, Position(), self.data.shuffle_buffer):
            if rows.has_text():
                return rows
        raise InputError(f"{', '.join(visible(name, 200) for name in self.data.train)}: no usable text")

    @cached_property
    def key(self) -> str | None:
        """A hash of everything that the rows depend on; None for streams, standard input and Hub datasets."""
        if self.data.streaming or self.cache.folder is None or not self._are_identified():
            return None
        digest = sha256(f"{self.data.model_dump_json(exclude={'train', 'eval'})} {self.seed}".encode())
        self._stats_at_key = self._file_stats()
        for split, tables in enumerate(self.tables):
            for table in tables:
                digest.update("\n".join(table.notes).encode("utf-8", "surrogateescape"))
                parts = (split, table.source, table.evaluation_set, table.limit, table.is_text, table.version)
                digest.update("\n{} {} {} {} {} {}".format(*parts).encode())
                for file in table.files:
                    digest.update(_file_hash(file) + "".join(file.suffixes).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def unchanged(self) -> bool:
        """Whether no file has changed since `key` was computed. If one has, the rows may not belong to the key."""
        return self._file_stats() == self._stats_at_key

    def file_sizes(self) -> list[int]:
        """Bytes of each file of both splits: all that is known of a stream's content before it is read."""
        return [size for size, _ in self._file_stats().values()]

    def _are_identified(self) -> bool:
        """Whether every table has files or a version; standard input and Hub datasets have neither."""
        return all(table.files or table.version for tables in self.tables for table in tables)

    def _file_stats(self) -> dict[Path, tuple[int, int]]:
        """File -> (size, time of the last change)."""
        files = [file for tables in self.tables for table in tables for file in table.files]
        stats = [(file, file.stat()) for file in files if file.exists()]
        return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats}


def _file_hash(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return file_digest(stream, "sha256").digest()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


def check_stdin(data: Split) -> None:
    """Raise UsageError for standard input that would be read twice, or by several processes."""
    count = sum(map(is_stdin, (*data.train, *data.eval)))
    if count > 1:
        raise UsageError(f"{STDIN} can be read only once; save one of the two to a file")
    if count and world_size() > 1:
        raise UsageError(f"{STDIN} cannot be shared by several processes; save it to a file")


def open_splits(data: Split) -> SplitTables:
    """Open the tables of both splits. Raises InputError, UsageError."""
    check_stdin(data)
    return open_tables(data.train, data), open_tables(data.eval, data, "validation")


def read(data: Split, seed: int, tables: SplitTables | None = None) -> tuple[Rows, Rows | None]:
    """Return (training rows, evaluation rows), from the `tables` if they are open already. Raises InputError."""
    of_train, of_eval = tables or open_splits(data)
    train = load(data.train, data, tables=of_train)
    if data.eval:
        return train, load(data.eval, data, tables=of_eval)
    remedy = "--eval-data, or --val-split 0" if isinstance(data, Data) else "--eval-data"
    return hold_out(train, data.val_split, seed, remedy) if data.val_split else (train, None)


def hold_out(rows: Rows, fraction: float, seed: int, remedy: str = "--eval-data") -> tuple[Rows, Rows]:
    """Return (training rows, evaluation rows): hold out a random `fraction` of the groups, at least one.

    Both splits keep the order of the data. Raises InputError, with the remedy, where there is only one group.
    """
    groups = sorted(set(rows.groups))
    if len(groups) < 2:
        raise InputError(f"{rows.tables[0].name}: too little to hold a part out; give {remedy}")
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    held = set(random.Random(seed).sample(groups, count))
    splits: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(rows.groups):
        splits[group in held].append(index)
    return rows.subset(splits[0]), replace(rows.subset(splits[1]), ledgers=tuple(Ledger() for _ in rows.ledgers))


def held_out(data: Data, seed: int) -> Rows:
    """Return the evaluation rows of a run. Raises UsageError where it has none, InputError as `read` does."""
    if any(map(is_stdin, (*data.train, *data.eval))):
        raise UsageError("the run read standard input, which cannot be read again; name other data with --data")
    if not (data.eval or data.val_split):
        raise UsageError("the run held nothing out for evaluation; name data with --data")
    rows = load(data.eval, data, "validation") if data.eval else read(data, seed)[1]
    assert rows is not None
    return rows


def check_leaks(train: Rows, held_out: Rows | None, on_leak: str) -> Splits:
    """Count duplicate and leaked rows, and treat leaked rows as `on_leak` (warn, drop, error) says.

    Raises InputError for leaked rows with `error`.
    """
    hashes = list(_group_hashes(train))
    known = set(hashes)
    duplicates = len(hashes) - len(known)
    if held_out is None:
        return Splits(train, None, 0, duplicates)
    leaked = [(position, value) for position, value in enumerate(_group_hashes(held_out)) if value in known]
    if leaked and on_leak == "error":
        others = f" (and {len(leaked) - 1:,} more)" if leaked[1:] else ""
        first = held_out.location(_first_of_group(held_out, leaked[0][0]))
        raise InputError(
            f"{first}: also occurs in the training data{others}; --on-leak drop leaves such rows out of training"
        )
    if leaked and on_leak == "drop":
        train = _drop_groups(train, {value for _, value in leaked})
    return _require_one_kind(Splits(train, held_out, len(leaked), duplicates))


def _require_one_kind(splits: Splits) -> Splits:
    if splits.held_out is not None and splits.held_out.kind != splits.train.kind:
        raise InputError(f"--eval-data holds {splits.held_out.kind} rows, but --data {splits.train.kind} rows")
    return splits


def _group_hashes(rows: Rows) -> Iterator[int]:
    """Yield a hash of each group: a row, or a passage of running text."""
    for _, group in groupby(zip(rows.groups, rows.contents(), strict=True), key=lambda pair: pair[0]):
        yield hash(tuple(content for _, content in group))


def _first_of_group(rows: Rows, number: int) -> int:
    starts = (index for index, group in enumerate(rows.groups) if index == 0 or group != rows.groups[index - 1])
    return next(index for position, index in enumerate(starts) if position == number)


def _drop_groups(rows: Rows, hashes: set[int]) -> Rows:
    """The rows without the groups with these hashes, counted as dropped. Raises InputError if nothing is left."""
    dropped = dict(zip(dict.fromkeys(rows.groups), (value in hashes for value in _group_hashes(rows)), strict=True))
    remaining = rows.subset([index for index, group in enumerate(rows.groups) if not dropped[group]])
    if not remaining.values:
        raise InputError("every training row also is an evaluation row, so --on-leak drop leaves nothing to train on")
    for ledger, before, after in zip(remaining.ledgers, rows.per_source(), remaining.per_source(), strict=True):
        ledger.rows_dropped += before - after
    return remaining
