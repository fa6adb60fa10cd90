"""Batch samplers: which rows share a batch, and the order of batches."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from lmtrain.preprocessing.batch import IGNORED, Collator
from lmtrain.preprocessing.dataset import Examples, Key
from lmtrain.preprocessing.packing import WORTH, share_rows
from lmtrain.preprocessing.ragged import Ragged

POOL = {1: 100, 2: 500}
"""Number of columns -> size of a pool, in batches. Rows are sorted by length inside a pool: a larger pool has less padding,
a smaller one is more random. Pairs need a larger pool, because a batch should be alike in two lengths."""

AT_ONCE = 1 << 16
"""Tokens per step of `count_trained`."""


@dataclass(frozen=True)
class EpochOrder:
    """A seeded random order of the rows for every epoch.

    With `weights`, one per source, an epoch has as many rows as the data, and each source a share by weight. A source
    repeats a row only after all its rows were used, also across epochs.
    """

    sources: np.ndarray
    """[rows] source index of each row."""
    seed: int
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return sum(self.shares().values()) if self.weights else len(self.sources)

    def shares(self) -> dict[int, int]:
        """Source index -> number of rows in an epoch."""
        present = np.unique(self.sources).tolist()
        whole = sum(self.weights[source] for source in present)
        return {source: max(round(len(self.sources) * self.weights[source] / whole), 1) for source in present}

    def of(self, epoch: int) -> np.ndarray:
        """[rows of the epoch] row indices."""
        if not self.weights:
            return np.random.default_rng((self.seed, epoch)).permutation(len(self.sources))
        drawn = np.concatenate([self._drawn(source, count, epoch) for source, count in self.shares().items()])
        return np.random.default_rng((self.seed, epoch)).permutation(drawn)

    def _drawn(self, source: int, count: int, epoch: int) -> np.ndarray:
        rows = np.flatnonzero(self.sources == source)
        start, end = epoch * count, (epoch + 1) * count
        passes = range(start // len(rows), -(-end // len(rows)))
        stream = np.concatenate([np.random.default_rng((self.seed, 1 + source, p)).permutation(rows) for p in passes])
        return stream[start - passes.start * len(rows) :][:count]


class BatchSampler(Sampler[list[Key]]):
    """Batches of this process: `size` rows or about `tokens` tokens each; with `alike`, rows of similar length.

    For padding-free batches, in rows of `width` tokens (padding_free.py), batches of `tokens` tokens are random unless
    `alike` is set, because similar lengths would save little padding. Every epoch has the same number of batches. If
    that number isn't a multiple of the processes, batches of the blank row (index `rows`), which has no labels, fill
    up: no row counts twice (accelerate would repeat some).
    """

    def __init__(
        self,
        examples: Examples,
        seed: int,
        size: int,
        tokens: int | None = None,
        alike: bool = False,
        weights: tuple[float, ...] = (),
        process: tuple[int, int] = (0, 1),
        grad_accum: int = 1,
        epochs: float = 1.0,
        max_steps: int | None = None,
        width: int | None = None,
    ):
        self.examples, self.lengths = examples, examples.lengths_by_column()
        self.order = EpochOrder(examples.source_of_rows(), seed, weights)
        self.size, self.tokens, self.alike = size, tokens, alike
        self.process, self.processes = process
        self.grad_accum, self.epochs, self.max_steps = grad_accum, epochs, max_steps
        self.width = width
        self.epoch = 0
        self.of = lru_cache(maxsize=2)(self._of)

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.of(0)) // self.processes)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        batches = self.of(epoch)
        for number in range(self.process, len(self) * self.processes, self.processes):
            rows = batches[number].tolist() if number < len(batches) else [len(self.order.sources)]
            progress = self.progress(epoch, number // self.processes)
            yield [(epoch, row, progress) for row in rows]

    def progress(self, epoch: int, number: int) -> float:
        """0 at the first step of training, 1 at the last; `number` is the index of the process's batch in the epoch."""
        in_epoch = -(-len(self) // self.grad_accum)
        steps = self.max_steps or math.ceil(self.epochs * in_epoch)
        return min((epoch * in_epoch + number // self.grad_accum) / max(steps - 1, 1), 1.0)

    def largest(self) -> list[Key]:
        """The batch of the first epoch with the most token slots."""
        batches = self.of(0)
        return [(0, row) for row in batches[int(self._slots.argmax())].tolist()]

    @property
    def most_slots(self) -> int:
        """The token slots of the largest batch of the first epoch."""
        return int(self._slots.max())

    def padding_fraction(self) -> float:
        """Share of padding in the first epoch."""
        return padding_fraction(self.lengths, self.of(0), self._slots)

    @cached_property
    def _slots(self) -> np.ndarray:
        """[batches of the first epoch] token slots, padding included."""
        batches = self.of(0)
        padded = padded_slots(self.lengths, batches)
        if self.width is None:
            return padded
        texts = np.stack(self.lengths, 1)
        tokens, longest = (way.reduceat(texts[batches.values], batches.offsets[:-1]) for way in (np.add, np.maximum))
        slots = tokens.sum(1)  # batches that fit into one row
        for number in np.flatnonzero(tokens.max(1) > np.maximum(longest.max(1), self.width)):
            slots[number] = share_rows(texts[batches[int(number)]], self.width)[1]
        return np.where(slots <= WORTH * padded, slots, padded)

    def _of(self, epoch: int) -> Ragged:
        order = self.order.of(epoch)
        if not (self.tokens or self.alike):
            return _cut(order, self.size)
        if self.tokens and self.width and not self.alike:
            return self._of_tokens(order, self.tokens)
        pools = _cut(order, POOL[len(self.lengths)] * self._rows_of_batch())
        whole = sum(int(column.sum()) for column in self.lengths)
        batches = [batch for pool in pools for batch in self._of_pool(pool, whole)]
        shuffled = np.random.default_rng((self.order.seed, epoch, 1)).permutation(len(batches))
        return Ragged.of((batches[number] for number in shuffled), np.int64)

    def _of_tokens(self, order: np.ndarray, tokens: int) -> Ragged:
        """The rows in `order` in batches of about `tokens` tokens; the number of batches is the same every epoch."""
        ends = np.cumsum(sum(column[order] for column in self.lengths))
        count = min(max(round(int(ends[-1]) / tokens), 1), len(order))
        at = np.arange(1, count)
        cuts = np.searchsorted(ends, ends[-1] * at / count, "right")
        cuts = np.maximum.accumulate(cuts.clip(1) - at) + at  # at least one row per batch
        return Ragged(order, np.array([0, *np.minimum(cuts, len(order) - count + at), len(order)], np.int64))

    def _rows_of_batch(self) -> int:
        """Average number of rows in a batch."""
        return max(int(self.tokens / sum(column.mean() for column in self.lengths)), 1) if self.tokens else self.size

    def _of_pool(self, pool: np.ndarray, whole: int) -> Iterable[np.ndarray]:
        """Batches of the pool's rows, sorted by length. Their number depends on the pool's size and on `whole`, the tokens of all rows."""
        longest_first = pool[np.lexsort([-column[pool] for column in reversed(self.lengths)])]
        if not self.tokens:
            return _cut(longest_first, self.size)
        share = whole * len(pool) / len(self.lengths[0])
        count = min(max(round(share / self.tokens), 1), len(pool))
        return evenly([column[longest_first] for column in self.lengths], longest_first, count)


def _cut(rows: np.ndarray, size: int) -> Ragged:
    return Ragged(rows, np.append(np.arange(0, len(rows), size), len(rows)))


def evenly(lengths: list[np.ndarray], rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut the rows, in their order, into `count` batches of padded sizes as equal as possible.

    A binary search finds the smallest size that `count` batches can have.
    """
    low, high = 1, len(rows) * sum(int(column.max()) for column in lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_greedily(lengths, middle)) > count:
            low = middle + 1
        else:
            high = middle
    bounds = _greedily(lengths, low)
    while len(bounds) < count:  # long rows may need fewer batches: halve the one with the most rows
        sizes = np.diff([*bounds, len(rows)])
        widest = int(sizes.argmax())
        bounds.insert(widest + 1, bounds[widest] + int(sizes[widest]) // 2)
    return np.split(rows, bounds[1:])


def _greedily(lengths: list[np.ndarray], most: int) -> list[int]:
    """Start indices of batches of at most `most` tokens, padding included; a longer row is a batch of its own."""
    bounds, start, total = [], 0, len(lengths[0])
    least = max(sum(int(column.min()) for column in lengths), 1)
    while start < total:
        bounds.append(start)
        window = slice(start, start + most // least + 1)
        height = np.sum([np.maximum.accumulate(column[window]) for column in lengths], axis=0)
        padded = height * np.arange(1, len(height) + 1)
        start += max(int(np.searchsorted(padded, most, "right")), 1)
    return bounds


class Loader(DataLoader[Any]):
    """A DataLoader that passes the epoch to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def count_trained(examples: Examples, collate: Collator, epoch: int | None) -> None:
    """Set `tokens_trained` in the examples' ledgers: the predicted tokens of an epoch (None: evaluation)."""
    ids = examples.columns["input_ids"]
    counts = np.zeros(len(examples.ledgers), np.int64)
    bounds = (
        np.empty(0)
        if examples.read
        else np.unique([*np.searchsorted(ids.offsets, np.arange(0, len(ids.values), AT_ONCE)), len(ids)])
    )
    for start, end in pairwise(bounds.tolist()):
        content: dict[str, Any] = {n: c.values[c.offsets[start] : c.offsets[end]] for n, c in examples.columns.items()}
        numbers = examples.numbers(np.arange(start, end))
        row = {"epoch": epoch, "progress": 0.0, "numbers": numbers, "lengths": ids.lengths[start:end], **content}
        _, labels = collate.scored(row)
        scored = labels != IGNORED
        column = examples.columns.get("labels", ids)
        owners = np.repeat(examples.source_of_texts()[start:end], column.lengths[start:end])[scored]
        counts += np.bincount(owners, minlength=len(counts))
    if examples.read is not None:  # every token of a target is trained
        counts = np.bincount(examples.source_of_texts(), examples.read[1], minlength=len(counts))
    for ledger, count in zip(examples.ledgers, counts, strict=True):
        ledger.tokens_trained = int(count)


def longest_first(lengths: np.ndarray, size: int) -> Ragged:
    """Batches of rows, longest first. A batch has `size` rows or more, but no more padded tokens than the first.

    `lengths` [rows] in tokens. For evaluation: there is little padding, and the first batch is the largest.
    """
    order = np.argsort(-lengths, kind="stable")
    bounds = _greedily([lengths[order]], size * int(lengths.max())) if len(order) else []
    return Ragged(order, np.array([*bounds, len(order)], np.int64))


def padding_fraction(lengths: list[np.ndarray], batches: Ragged, slots: np.ndarray | None = None) -> float:
    """Share of padding in one epoch; `lengths` holds one array per column.

    `slots` [batches] are the token slots of each batch; default: those of padded rows.
    """
    read = sum(int(column[batches.values].sum()) for column in lengths)
    slots = padded_slots(lengths, batches) if slots is None else slots
    return 1 - read / max(int(slots.sum()), 1)


def padded_slots(lengths: list[np.ndarray], batches: Ragged) -> np.ndarray:
    """[batches] token slots if every row of a batch is padded to its longest."""
    longest = [np.maximum.reduceat(column[batches.values], batches.offsets[:-1]) for column in lengths]
    return sum(longest) * batches.lengths
