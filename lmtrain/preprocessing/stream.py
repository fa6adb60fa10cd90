"""Streaming: training data are read while training, chunk by chunk, shuffled inside each, without end.

What is left of a chunk when its last row was cut or filled is carried into the next. The position of a stream is a few
numbers and at most one row of ids (StreamState). A run resumes from it without a saved shuffle buffer: the chunk is read and
shuffled again as before.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from lmtrain.data.ledger import COUNTS, Ledger, extend_fingerprint, total
from lmtrain.data.reading import Position, RowReader, chunks
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.preprocessing.batch import Batch, Collator, Row
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.sampler import count_trained

STREAM = "stream.json"
"""In a checkpoint: the position of the stream of training data."""


@dataclass(frozen=True)
class StreamState:
    """The position of a stream: before a chunk of which `taken` rows have been given."""

    epoch: int = 0
    position: Position = field(default_factory=Position)
    carried: dict[str, list[int]] = field(default_factory=dict)
    """What is left of the chunk before, by column."""
    continues: bool = False
    texts: int = 0
    """Texts (pieces, pairs) of this epoch before this chunk: masks depend on the number of a text."""
    taken: int = 0
    ledgers: tuple[dict[str, Any], ...] = ()
    """The ledgers of what was read of the first epoch before this chunk."""
    fingerprint: str = ""
    chunk: int = 0
    """Rows that are read at a time."""
    batches: int = 0
    """Batches that each process has been given."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StreamState":
        found = json.loads(text)
        return cls(**{**found, "position": Position(*found["position"]), "ledgers": tuple(found["ledgers"])})


@dataclass
class Stream(IterableDataset):  # type: ignore[type-arg]
    """Batches of this process, for ever; `state` is the position after the last one.

    Every process reads everything and takes every n-th batch, so that all of them know the position.
    """

    reading: RowReader
    encode: Callable[[Rows], Examples]
    """A chunk of rows -> examples, packed where the recipe packs."""
    collator: Collator
    seed: int
    batch_size: int
    chunk: int
    process: tuple[int, int] = (0, 1)
    state: StreamState = field(default_factory=StreamState)
    grad_accum: int = 1
    steps: int = 1

    def __post_init__(self) -> None:
        self._begun: tuple[tuple[Ledger, ...], str] | None = None
        self.state = replace(self.state, chunk=self.chunk)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.collator, self.rows())

    def rows(self) -> Iterator[list[Row]]:
        """The rows of each batch."""
        rows = self._rows()
        process, processes = self.process
        while True:
            batches = [[next(rows) for _ in range(self.batch_size)] for _ in range(processes)]
            progress = min(self.state.batches // self.grad_accum / max(self.steps - 1, 1), 1.0)
            self.state = replace(batches[-1][-1][1], batches=self.state.batches + 1)
            yield [content | {"progress": progress} for content, _ in batches[process]]

    def ledgers(self) -> tuple[tuple[Ledger, ...], str]:
        """(the ledgers of the sources, the fingerprint) of the first epoch, as far as its chunks have begun."""
        return self._begun or (tuple(Ledger(**ledger) for ledger in self.state.ledgers), self.state.fingerprint)

    # --- rows

    def _rows(self) -> Iterator[tuple[dict[str, Any], StreamState]]:
        """Every row, with the state after it."""
        after = state = self.state
        while True:
            for chunk, before, after in self._chunks(state):
                order = np.random.default_rng((self.seed, before.epoch, *before.position)).permutation(len(chunk))
                for taken in range(before.taken, len(order)):
                    rest = replace(before, taken=taken + 1)
                    yield chunk[before.epoch, int(order[taken])], rest if taken + 1 < len(order) else after
            state = StreamState(
                state.epoch + 1, ledgers=after.ledgers, fingerprint=after.fingerprint, chunk=self.chunk
            )

    def _chunks(self, state: StreamState) -> Iterator[tuple[Examples, StreamState, StreamState]]:
        """(examples, the state before them, the state after them) of each remaining chunk of an epoch."""
        empty = True
        for rows, position in chunks(self.reading, state.position, self.chunk):
            examples = self.encode(replace(rows, carried=state.carried, continues=state.continues))
            examples = replace(examples, first=state.texts)
            after = StreamState(
                state.epoch, position, examples.rest, rows.continues_in_next(),
                state.texts + examples.count, 0, *self._counted(state, rows, examples), self.chunk,
            )  # fmt: skip
            empty = empty and not examples.count
            yield examples, state, after
            state = after
        if empty and state.position == Position():
            raise InputError(f"{self.reading.tables[0].name}: no usable text")

    def _counted(self, state: StreamState, rows: Rows, examples: Examples) -> tuple[tuple[dict[str, Any], ...], str]:
        if state.epoch:
            return state.ledgers, state.fingerprint
        count_trained(examples, self.collator, 0)
        before = [Ledger(**ledger) for ledger in state.ledgers] or [Ledger() for _ in examples.ledgers]
        ledgers = [total(both) for both in zip(before, examples.ledgers, strict=True)]
        fingerprint = extend_fingerprint(state.fingerprint, rows.contents())
        self._begun = tuple(ledgers), fingerprint
        return tuple({name: vars(ledger)[name] for name in COUNTS} for ledger in ledgers), fingerprint
