"""A tokenised dataset: rows of token ids, indexed by (epoch, row)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from lmtrain.data.labels import LABELLED
from lmtrain.data.ledger import Ledger, total
from lmtrain.errors import UsageError
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.packing import best_fit
from lmtrain.preprocessing.ragged import Ragged

Key = tuple[int | None, int] | tuple[int | None, int, float]
"""(epoch, row), the index of an example. Masks are a function of it; epoch is None at evaluation. In training, a third
element is the progress, from 0 at the first step to 1 at the last."""

DEFAULT_LENGTH = 1024

BLANK = {"input_ids": np.zeros(1, np.int64), "labels": np.full(1, IGNORED)}
"""A row without labels. It fills up the last batches, so that every process has equally many."""


@dataclass(frozen=True)
class Limits:
    """Maximum lengths of rows in tokens. They are resolved on the training data and reused for evaluation."""

    positions: int | None
    """Positions of the model; None: no limit."""
    resolved: Mapping[str, int] = field(default_factory=dict)
    """Option (`max_length`, …) -> tokens, for the limits that are resolved."""

    def __getitem__(self, option: str) -> int:
        return self.resolved[option]

    def resolve(self, option: str, requested: int | None, needed: int | None = None) -> "Limits":
        """A copy in which the limit of `option` is resolved: as requested, else as the data need, else a default.

        A resolved limit doesn't change. Raises UsageError if more is requested than the model has positions.
        """
        if option in self.resolved:
            return self
        return replace(self, resolved={**self.resolved, option: self.at_most(option, requested, needed)})

    def at_most(self, option: str, requested: int | None, needed: int | None = None) -> int:
        """The limit that `resolve` would set for `option`. Raises UsageError like `resolve`."""
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
    """A tokenised dataset: columns of token ids, indexed by (epoch, row).

    A row of the columns is a text, a piece of one, a chat or a pair. With packing, example i concatenates the rows
    `shared[i]` of the columns.
    """

    kind: str
    columns: dict[str, Ragged]
    ledgers: tuple[Ledger, ...]
    """One per source."""
    limits: Limits
    """Maximum lengths of the rows."""
    fingerprint: str = ""
    sources: np.ndarray | None = None
    """Source index of each row of the columns; None: all rows come from source 0."""
    evaluation_sets: tuple[str, ...] = ()
    """Name of the evaluation set that each source belongs to; empty if they have none."""
    texts: list[tuple[str, ...]] | None = None
    """Source and references of each pair (of each question) as text, for evaluation."""
    shared: Ragged | None = None
    rest: dict[str, list[int]] = field(default_factory=dict)
    """Ids that a chunk of a stream carries over into the next chunk, by column."""
    tail: tuple[str, int, int] | None = None
    """Text that a chunk of a stream carries over, as a `Piece`."""
    read: tuple[np.ndarray, np.ndarray] | None = None
    """[rows] tokens of source and of target, if the collator makes these from a text (denoising)."""
    first: int = 0
    """Number of the first row: in a stream, the rows of the chunks before count."""
    warnings: tuple[str, ...] = ()
    """What to tell about the rows that were encoded."""

    def __len__(self) -> int:
        return len(self.shared) if self.shared else self.count

    @property
    def count(self) -> int:
        """Rows of the columns."""
        return len(self.columns["input_ids"])

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The columns of one example, with the `numbers` of its texts and their `lengths` in tokens."""
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
        return {**when, "numbers": self.numbers(inside), "lengths": lengths, **content}

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of which the masks of these rows of the columns are a function."""
        return self._within_sets[rows] if self.evaluation_sets else rows + self.first

    @cached_property
    def _within_sets(self) -> np.ndarray:
        """[rows of the columns] number of each row within its set, so that no set changes the masks of another."""
        names = np.array(self.evaluation_sets)[self.source_of_texts()]
        numbers = np.empty(self.count, np.int64)
        for name in np.unique(names):
            own = np.flatnonzero(names == name)
            numbers[own] = np.arange(len(own))
        return numbers

    @property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row; of a pair, source and target together."""
        return sum(self.lengths_by_column())  # type: ignore[return-value]

    def lengths_by_column(self) -> list[np.ndarray]:
        """[rows] tokens of each row, per column that the model reads (a pair has two)."""
        if self.read is not None:
            return [*self.read]
        read = ("input_ids",) if self.kind in LABELLED else ("input_ids", "labels")
        columns = [self.columns[name].lengths for name in read if name in self.columns]
        if self.shared is None:
            return columns
        return [np.add.reduceat(column[self.shared.values], self.shared.offsets[:-1]) for column in columns]

    def packed(self, room: int) -> "Examples":
        """A copy that packs whole texts of the same source into rows of `room` tokens."""
        lengths = self.columns["input_ids"].lengths
        if self.sources is None:
            return replace(self, shared=best_fit(lengths, room))
        parts = [np.flatnonzero(self.sources == source) for source in np.unique(self.sources)]
        rows = [part[row] for part in parts for row in best_fit(lengths[part], room)]
        return replace(self, shared=Ragged.of(rows, np.int64))

    def head(self, rows: int) -> "Examples":
        """A copy of the first rows of the columns, which keeps no reference to the rest."""
        rows = min(rows, self.count)
        first = {name: column.first(rows) for name, column in self.columns.items()}
        columns = {name: Ragged(column.values.copy(), column.offsets.copy()) for name, column in first.items()}
        read = self.read and (self.read[0][:rows], self.read[1][:rows])
        return replace(self, columns=columns, read=read, sources=None if self.sources is None else self.sources[:rows])

    def source_of_texts(self) -> np.ndarray:
        """[rows of the columns] source index of each text."""
        return np.zeros(self.count, np.int64) if self.sources is None else self.sources

    def source_of_rows(self) -> np.ndarray:
        """[rows] source index of each example."""
        sources = self.source_of_texts()
        return sources if self.shared is None else sources[self.shared.values[self.shared.offsets[:-1]]]

    @property
    def units(self) -> np.ndarray:
        """[rows] number of what each row is scored with: the question that a window is of, otherwise the row itself."""
        return self.columns["question"].values if "question" in self.columns else np.arange(len(self))

    @property
    def ledger(self) -> Ledger:
        return total(self.ledgers, self.fingerprint)


def longest_lengths(examples: Examples, streaming: bool) -> list[int]:
    """Tokens of the longest row of each column; for a stream, whose rows are not known yet, the limits."""
    if streaming:
        return [*examples.limits.resolved.values()]
    return [int(column.max()) for column in examples.lengths_by_column()]
