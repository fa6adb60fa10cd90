"""What one data set is to the model: rows of ids, to be asked for by epoch and number."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmtrain.data.ledger import Ledger, total
from lmtrain.errors import UsageError
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.packing import best_fit
from lmtrain.preprocessing.ragged import Ragged

Key = tuple[int | None, int] | tuple[int | None, int, float]
"""(epoch, row): what a batch asks for. Masks are a function of it; epoch is None at evaluation. While training, also the
progress, from 0 to 1: which step of how many it is."""

DEFAULT_LENGTH = 1024

BLANK = {"input_ids": np.zeros(1, np.int64), "labels": np.full(1, IGNORED)}
"""A row that trains nothing: fills the last batches where processes have to keep step."""


@dataclass(frozen=True)
class Limits:
    """The most tokens that a row of each column may have: decided on the training data, reused for evaluation."""

    positions: int | None
    """What the model can read; None: any length."""
    resolved: Mapping[str, int] = field(default_factory=dict)
    """Option (`max_length`, …) -> tokens, of the limits that are decided."""

    def __getitem__(self, option: str) -> int:
        return self.resolved[option]

    def resolve(self, option: str, requested: int | None, needed: int | None = None) -> "Limits":
        """These limits with that of `option` decided: as requested, else as long as the data need, else a default.

        A limit that is decided already stays. Raises UsageError where more is requested than the model has positions.
        """
        if option in self.resolved:
            return self
        return replace(self, resolved={**self.resolved, option: self.at_most(option, requested, needed)})

    def at_most(self, option: str, requested: int | None, needed: int | None = None) -> int:
        """What the limit of `option` is, or would be. Raises UsageError as `resolve`."""
        if option in self.resolved:
            return self.resolved[option]
        if requested and self.positions and requested > self.positions:
            raise UsageError(
                f"--{option.replace('_', '-')} {requested}: the model has {self.positions} positions; "
                f"ask for {self.positions} at most"
            )
        default = min(self.positions or DEFAULT_LENGTH, DEFAULT_LENGTH)
        return requested or (min(needed, default) if needed else default)

    def as_flags(self, joint: str = ", ") -> str:
        """`--max-source-length 40, --max-target-length 32`"""
        return joint.join(f"--{option.replace('_', '-')} {length}" for option, length in self.resolved.items())


@dataclass(frozen=True)
class Examples:
    """What one data set is to the model: rows of ids by column, ready to be asked for by (epoch, row).

    A row of the columns is a text, a piece of one, a chat or a pair. With `shared`, whole ones share a row: row i is
    made of the rows `shared[i]` of the columns.
    """

    kind: str
    columns: dict[str, Ragged]
    ledgers: tuple[Ledger, ...]
    """One a source."""
    limits: Limits
    """The lengths that the rows were cut to."""
    fingerprint: str = ""
    sources: np.ndarray | None = None
    """Of each row of the columns the source it comes from; None: all from the first."""
    texts: list[tuple[str, ...]] | None = None
    """Of each pair, for evaluation, the source and the references in words."""
    shared: Ragged | None = None
    rest: dict[str, list[int]] = field(default_factory=dict)
    """Of a part of a stream: what belongs to the part that follows, by column."""
    read: tuple[np.ndarray, np.ndarray] | None = None
    """[rows] tokens of source and target, where these are made of the text that a row holds only while training."""
    first: int = 0
    """The number of the first row, where the rows before are of another part of a stream."""

    def __len__(self) -> int:
        return len(self.shared) if self.shared else self.count

    @property
    def count(self) -> int:
        """Rows of the columns."""
        return len(self.columns["input_ids"])

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The row's columns, with `numbers`, of the texts in it, and `lengths`, their tokens."""
        epoch, row, *progress = key
        when = {"epoch": epoch, "progress": progress[0] if progress else 0.0}
        if row == len(self):
            return {**when, "numbers": np.zeros(1, np.int64), "lengths": np.ones(1, np.int64), **BLANK}
        inside = self.shared[row] if self.shared else np.array([row])
        content = {
            name: column[row] if not self.shared else np.concatenate([column[i] for i in inside])
            for name, column in self.columns.items()
        }
        lengths = self.columns["input_ids"].lengths_of(inside)
        return {**when, "numbers": inside + self.first, "lengths": lengths, **content}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, over all that the model reads."""
        return sum(self.lengths_by_column())  # type: ignore[return-value]

    def lengths_by_column(self) -> list[np.ndarray]:
        """Of what the model reads (a pair: two columns), the tokens of each row."""
        if self.read is not None:
            return [*self.read]
        columns = [self.columns[name].lengths for name in ("input_ids", "labels") if name in self.columns]
        if self.shared is None:
            return columns
        return [np.add.reduceat(column[self.shared.values], self.shared.offsets[:-1]) for column in columns]

    def packed(self, room: int) -> "Examples":
        """The same with whole texts of one source sharing rows of `room` tokens."""
        lengths = self.columns["input_ids"].lengths
        if self.sources is None:
            return replace(self, shared=best_fit(lengths, room))
        parts = [np.flatnonzero(self.sources == source) for source in np.unique(self.sources)]
        rows = [part[row] for part in parts for row in best_fit(lengths[part], room)]
        return replace(self, shared=Ragged.of(rows, np.int64))

    def head(self, rows: int) -> "Examples":
        """The first rows of the columns, in memory of their own, to look at."""
        rows = min(rows, self.count)
        first = {name: column.first(rows) for name, column in self.columns.items()}
        columns = {name: Ragged(column.values.copy(), column.offsets.copy()) for name, column in first.items()}
        read = self.read and (self.read[0][:rows], self.read[1][:rows])
        return replace(self, columns=columns, read=read, sources=None if self.sources is None else self.sources[:rows])

    def source_of_texts(self) -> np.ndarray:
        """[rows of the columns] the source of each."""
        return np.zeros(self.count, np.int64) if self.sources is None else self.sources

    def source_of_rows(self) -> np.ndarray:
        """[rows] the source of each."""
        sources = self.source_of_texts()
        return sources if self.shared is None else sources[self.shared.values[self.shared.offsets[:-1]]]

    @property
    def ledger(self) -> Ledger:
        return total(self.ledgers, self.fingerprint)


def longest_lengths(examples: Examples, streaming: bool) -> list[int]:
    """Tokens of the longest text (source and target). Of a stream only the beginning is known: the limits."""
    if streaming:
        return [*examples.limits.resolved.values()]
    return [int(column.max()) for column in examples.lengths_by_column()]
