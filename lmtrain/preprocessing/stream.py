"""Streaming: read training data chunk by chunk during training, shuffle each chunk, and repeat without end.

Tokens that don't fill the last row of a chunk are carried into the next chunk, and so is the end of a text whose tokens
depend on what follows. The state of a stream is a few numbers, at most one row of ids and the end of a text
(StreamState). A checkpoint needs no shuffle buffer: resuming reads and shuffles the chunk again.
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
"""The file in a checkpoint that holds the state of the stream."""


@dataclass(frozen=True)
class StreamState:
    """The position of a stream: the start of a chunk, `taken` rows of which were already used."""

    epoch: int = 0
    position: Position = field(default_factory=Position)
    carried: dict[str, list[int]] = field(default_factory=dict)
    """Ids carried over from the previous chunk, by column."""
    continues: bool = False
    tail: tuple[str, int, int] | None = None
    """Text carried over from the previous chunk, as a `Piece`."""
    texts: int = 0
    """Texts (pieces, pairs) before this chunk in this epoch: masks depend on the number of a text."""
    taken: int = 0
    ledgers: tuple[dict[str, Any], ...] = ()
    """Ledgers of the rows before this chunk in the first epoch."""
    fingerprint: str = ""
    chunk: int = 0
    """Rows per chunk."""
    batches: int = 0
    """Batches that each process already used."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StreamState":
        found = json.loads(text)
        tail = tuple(found["tail"]) if found.get("tail") else None
        position, ledgers = Position(*found["position"]), tuple(found["ledgers"])
        return cls(**{**found, "position": position, "tail": tail, "ledgers": ledgers})


@dataclass
class Stream(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of this process; `state` is the position after the last one.

    The first process reads and encodes the rows, chunk by chunk, and `share`s them. Every process takes every n-th batch, so
    that all have the same state.
    """

    reading: RowReader
    encode: Callable[[Rows], Examples]
    """Converts a chunk of rows to examples, packed if the recipe packs."""
    collator: Collator
    seed: int
    batch_size: int
    chunk: int
    process: tuple[int, int] = (0, 1)
    state: StreamState = field(default_factory=StreamState)
    grad_accum: int = 1
    steps: int = 1
    share: Callable[[Any], Any] = lambda chunk: chunk
    """Returns what the first process gives it, in all processes."""

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
        """(one ledger per source, fingerprint) of the first epoch, up to the current chunk."""
        return self._begun or (tuple(Ledger(**ledger) for ledger in self.state.ledgers), self.state.fingerprint)

    # --- rows

    def _rows(self) -> Iterator[tuple[dict[str, Any], StreamState]]:
        """Yield (row, state after it)."""
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
        """Yield (examples, state before, state after) for each remaining chunk of the epoch."""
        reading = self._read_chunks(state) if self.process[0] == 0 else iter(())
        while chunk := self.share(next(reading, None)):
            yield chunk

    def _read_chunks(self, state: StreamState) -> Iterator[tuple[Examples, StreamState, StreamState]]:
        empty = True
        for rows, position in chunks(self.reading, state.position, self.chunk):
            examples = self.encode(replace(rows, carried=state.carried, continues=state.continues, tail=state.tail))
            examples = replace(examples, first=state.texts)
            after = StreamState(
                state.epoch,
                position,
                examples.rest,
                rows.continues_in_next(),
                examples.tail,
                state.texts + examples.count,
                0,
                *self._counted(state, rows, examples),
                self.chunk,
            )
            empty = empty and not examples.count
            yield examples, state, after
            state = after
        if empty and state.position == Position():
            raise InputError(f"{self.reading.tables[0].name}: no usable text")

    def _counted(self, state: StreamState, rows: Rows, examples: Examples) -> tuple[tuple[dict[str, Any], ...], str]:
        """(ledgers, fingerprint) after this chunk; both cover the first epoch only."""
        if state.epoch:
            return state.ledgers, state.fingerprint
        count_trained(examples, self.collator, 0)
        before = [Ledger(**ledger) for ledger in state.ledgers] or [Ledger() for _ in examples.ledgers]
        ledgers = [total(both) for both in zip(before, examples.ledgers, strict=True)]
        fingerprint = extend_fingerprint(state.fingerprint, rows.contents())
        self._begun = tuple(ledgers), fingerprint
        return tuple({name: vars(ledger)[name] for name in COUNTS} for ledger in ledgers), fingerprint
