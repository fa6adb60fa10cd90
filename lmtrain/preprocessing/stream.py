"""Training data that are read while training: chunk by chunk, shuffled inside each, without end.

What is left of a chunk when its last row was cut or filled is carried into the next. Where a stream stands is a few
numbers and at most one row of ids (State), so a run goes on from it without having kept a shuffle buffer: the chunk that
it was in is read and shuffled again, as before.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from lmtrain.data.ledger import COUNTS, Ledger, chained, total
from lmtrain.data.reading import Position, Reading, chunks
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.preprocessing.batch import Batch, Collator
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.sampler import count_trained

STREAM = "stream.json"
"""In a checkpoint: where the stream of training data stands."""


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: in front of a chunk, of which `taken` rows have been given."""

    epoch: int = 0
    position: Position = field(default_factory=Position)
    carried: dict[str, list[int]] = field(default_factory=dict)
    """What is left over of the chunk before, by column."""
    continues: bool = False
    texts: int = 0
    """Texts (pieces, pairs) of this epoch before this chunk: the numbers that masks are made of go on from there."""
    taken: int = 0
    ledgers: tuple[dict[str, Any], ...] = ()
    """Of what was read of the first epoch before this chunk."""
    fingerprint: str = ""
    chunk: int = 0
    """Rows that are read at a time."""
    batches: int = 0
    """That each process has been given."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StreamState":
        found = json.loads(text)
        return cls(**{**found, "position": Position(*found["position"]), "ledgers": tuple(found["ledgers"])})


@dataclass
class Stream(IterableDataset):  # type: ignore[type-arg]
    """Batches of this process, for ever; `state` is what has been given so far.

    Every process reads everything and takes every n-th batch, so that all of them know where the stream stands.
    """

    reading: Reading
    encode: Callable[[Rows], Examples]
    """A chunk of rows -> examples, in rows that texts share if they are to be packed."""
    collate: Collator
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
        rows = self._rows()
        process, processes = self.process
        while True:
            batches = [[next(rows) for _ in range(self.batch_size)] for _ in range(processes)]
            progress = min(self.state.batches // self.grad_accum / max(self.steps - 1, 1), 1.0)
            self.state = replace(batches[-1][-1][1], batches=self.state.batches + 1)
            yield self.collate([content | {"progress": progress} for content, _ in batches[process]])

    def ledgers(self) -> tuple[tuple[Ledger, ...], str]:
        """(the ledgers of the sources, the fingerprint) of the first epoch, as far as its chunks have been begun."""
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
        """(examples, the state before them, the state after them) of each chunk of the rest of an epoch."""
        empty = True
        for rows, position in chunks(self.reading, state.position, self.chunk):
            examples = self.encode(replace(rows, carried=state.carried, continues=state.continues))
            examples = replace(examples, first=state.texts)
            after = StreamState(
                state.epoch, position, examples.rest, rows.goes_on(),
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
        count_trained(examples, self.collate, 0)
        before = [Ledger(**ledger) for ledger in state.ledgers] or [Ledger() for _ in examples.ledgers]
        ledgers = [total(both) for both in zip(before, examples.ledgers, strict=True)]
        fingerprint = chained(state.fingerprint, rows.contents())
        self._begun = tuple(ledgers), fingerprint
        return tuple({name: vars(ledger)[name] for name in COUNTS} for ledger in ledgers), fingerprint
