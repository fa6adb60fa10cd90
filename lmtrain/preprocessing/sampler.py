"""Which rows share a batch, and in which order."""

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
"""Columns -> batches' worth of rows that are sorted by length together: enough for little padding, few enough to stay
random. A batch of pairs has to be alike in two lengths, for which it takes more rows to choose from."""

AT_ONCE = 1 << 16
"""Tokens whose labels are counted at once."""


@dataclass(frozen=True)
class EpochOrder:
    """A new seeded order of the rows for every epoch.

    With `weights`, one a source, an epoch has as many rows as there are, shared out by weight. A source gives its rows
    one pass after another, each in an order of its own: none comes again before all have come, also across epochs.
    """

    sources: np.ndarray
    """[rows]"""
    seed: int
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return sum(self.shares().values()) if self.weights else len(self.sources)

    def shares(self) -> dict[int, int]:
        """Source -> its rows in an epoch."""
        present = np.unique(self.sources).tolist()
        whole = sum(self.weights[source] for source in present)
        return {source: max(round(len(self.sources) * self.weights[source] / whole), 1) for source in present}

    def of(self, epoch: int) -> np.ndarray:
        """[rows of the epoch]"""
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
    """The batches of this process, as rows of each: `size` at a time, or about `tokens` tokens, or of like length.

    Where the texts of a batch are laid end to end, in rows of `width` tokens (joining.py), about `tokens` tokens are drawn by
    chance unless they are to be `alike`: there is little padding that like lengths would spare.
    Every epoch has the same number of batches. Where they do not come out even for several processes, batches of the
    blank row, number `rows`, which trains nothing, fill the gap: no row counts twice (accelerate would repeat some).
    """

    def __init__(
        self, examples: Examples, seed: int, size: int, tokens: int | None = None, alike: bool = False,
        weights: tuple[float, ...] = (), process: tuple[int, int] = (0, 1), grad_accum: int = 1,
        epochs: float = 1.0, max_steps: int | None = None, width: int | None = None,
    ):  # fmt: skip
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
        """0 at the first step of the training, 1 at the last one; `number` is that of a process's batch in its epoch."""
        in_epoch = -(-len(self) // self.grad_accum)
        steps = self.max_steps or math.ceil(self.epochs * in_epoch)
        return min((epoch * in_epoch + number // self.grad_accum) / max(steps - 1, 1), 1.0)

    def largest(self) -> list[Key]:
        """The batch of the first epoch that takes the most places for tokens."""
        batches = self.of(0)
        return [(0, row) for row in batches[int(self._places.argmax())].tolist()]

    def padding_fraction(self) -> float:
        """In the first epoch."""
        return padding_fraction(self.lengths, self.of(0), self._places)

    @cached_property
    def _places(self) -> np.ndarray:
        """[batches of the first epoch] for tokens, padding included."""
        batches = self.of(0)
        padded = padded_places(self.lengths, batches)
        if self.width is None:
            return padded
        texts = np.stack(self.lengths, 1)
        tokens, longest = (way.reduceat(texts[batches.values], batches.offsets[:-1]) for way in (np.add, np.maximum))
        places = tokens.sum(1)  # of those that make one row
        for number in np.flatnonzero(tokens.max(1) > np.maximum(longest.max(1), self.width)):
            places[number] = share_rows(texts[batches[number]], self.width)[1]
        return np.where(places <= WORTH * padded, places, padded)

    def _of(self, epoch: int) -> Ragged:
        order = self.order.of(epoch)
        if not (self.tokens or self.alike):
            return _cut(order, self.size)
        if self.tokens and self.width and not self.alike:
            return self._of_tokens(order)
        pools = _cut(order, POOL[len(self.lengths)] * self._rows_of_batch())
        whole = sum(int(column.sum()) for column in self.lengths)
        batches = [batch for pool in pools for batch in self._of_pool(pool, whole)]
        shuffled = np.random.default_rng((self.order.seed, epoch, 1)).permutation(len(batches))
        return Ragged.of((batches[number] for number in shuffled), np.int64)

    def _of_tokens(self, order: np.ndarray) -> Ragged:
        """The rows in their order, cut after every `tokens` tokens or so, in equally many batches every epoch."""
        ends = np.cumsum(sum(column[order] for column in self.lengths))
        count = min(max(round(int(ends[-1]) / self.tokens), 1), len(order))
        at = np.arange(1, count)
        cuts = np.searchsorted(ends, ends[-1] * at / count, "right")
        cuts = np.maximum.accumulate(cuts.clip(1) - at) + at  # at least a row each, however long it is,
        return Ragged(order, np.array([0, *np.minimum(cuts, len(order) - count + at), len(order)], np.int64))

    def _rows_of_batch(self) -> int:
        """Of a batch of `tokens`, how many rows it has on average."""
        return max(int(self.tokens / sum(column.mean() for column in self.lengths)), 1) if self.tokens else self.size

    def _of_pool(self, pool: np.ndarray, whole: int) -> Iterable[np.ndarray]:
        """The pool's rows sorted by length, in as many batches as every pool of its size has; `whole`: tokens of all rows."""
        longest_first = pool[np.lexsort([-column[pool] for column in reversed(self.lengths)])]
        if not self.tokens:
            return _cut(longest_first, self.size)
        share = whole * len(pool) / len(self.lengths[0])
        count = min(max(round(share / self.tokens), 1), len(pool))
        return evenly([column[longest_first] for column in self.lengths], longest_first, count)


def _cut(rows: np.ndarray, size: int) -> Ragged:
    return Ragged(rows, np.append(np.arange(0, len(rows), size), len(rows)))


def evenly(lengths: list[np.ndarray], rows: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows, in their order, cut into `count` batches whose padded sizes are as equal as they can be.

    The least size that `count` batches can keep is found by halving.
    """
    low, high = 1, len(rows) * sum(int(column.max()) for column in lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_greedily(lengths, middle)) > count:
            low = middle + 1
        else:
            high = middle
    bounds = _greedily(lengths, low)
    while len(bounds) < count:  # a coarse row may leave a batch to spare: the one of most rows is halved
        sizes = np.diff([*bounds, len(rows)])
        widest = int(sizes.argmax())
        bounds.insert(widest + 1, bounds[widest] + int(sizes[widest]) // 2)
    return np.split(rows, bounds[1:])


def _greedily(lengths: list[np.ndarray], most: int) -> list[int]:
    """Where batches start that take rows as long as they are padded to `most` tokens at most; one row if it is longer."""
    bounds, start, total = [], 0, len(lengths[0])
    least = max(sum(int(column.min()) for column in lengths), 1)
    while start < total:
        bounds.append(start)
        window = slice(start, start + most // least + 1)
        height = sum(np.maximum.accumulate(column[window]) for column in lengths)
        padded = height * np.arange(1, len(height) + 1)
        start += max(int(np.searchsorted(padded, most, "right")), 1)
    return bounds


class Loader(DataLoader):
    """A loader of whole batches that are told which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


# --- accounts --------------------------------------------------------------------------------------------------------
def count_trained(examples: Examples, collate: Collator, epoch: int | None) -> None:
    """Enter the tokens that are predicted in an epoch (None: at evaluation) in the ledgers of the examples' sources."""
    ids = examples.columns["input_ids"]
    counts = np.zeros(len(examples.ledgers), np.int64)
    bounds = (
        np.empty(0)
        if examples.read
        else np.unique([*np.searchsorted(ids.offsets, np.arange(0, len(ids.values), AT_ONCE)), len(ids)])
    )
    for start, end in pairwise(bounds.tolist()):
        content: dict[str, Any] = {n: c.values[c.offsets[start] : c.offsets[end]] for n, c in examples.columns.items()}
        numbers = np.arange(start, end) + examples.first
        row = {"epoch": epoch, "progress": 0.0, "numbers": numbers, "lengths": ids.lengths[start:end], **content}
        _, labels = collate.scored(row)
        scored = labels != IGNORED
        column = examples.columns.get("labels", ids)
        owners = np.repeat(examples.source_of_texts()[start:end], column.lengths[start:end])[scored]
        counts += np.bincount(owners, minlength=len(counts))
    if examples.read is not None:  # every token of a target is trained, and its length is known without making it
        counts = np.bincount(examples.source_of_texts(), examples.read[1], minlength=len(counts))
    for ledger, count in zip(examples.ledgers, counts, strict=True):
        ledger.tokens_trained = int(count)


def longest_first(lengths: np.ndarray, size: int) -> Ragged:
    """The rows from the longest on, in batches of `size`, or of more where they are shorter and padded to no more tokens.

    `lengths` [rows] over all that the model reads. For evaluation: little padding, and the first batch is the largest.
    """
    order = np.argsort(-lengths, kind="stable")
    bounds = _greedily([lengths[order]], size * int(lengths.max())) if len(order) else []
    return Ragged(order, np.array([*bounds, len(order)], np.int64))


def padding_fraction(lengths: list[np.ndarray], batches: Ragged, places: np.ndarray | None = None) -> float:
    """The share of padding among all ids that the model reads in one epoch; `lengths` holds one array a column.

    `places` [batches] for tokens, where these are not those of padded rows.
    """
    read = sum(int(column[batches.values].sum()) for column in lengths)
    places = padded_places(lengths, batches) if places is None else places
    return 1 - read / max(int(places.sum()), 1)


def padded_places(lengths: list[np.ndarray], batches: Ragged) -> np.ndarray:
    """[batches] places for tokens where every row of a batch is as long as its longest."""
    longest = [np.maximum.reduceat(column[batches.values], batches.offsets[:-1]) for column in lengths]
    return sum(longest) * batches.lengths  # type: ignore[no-any-return]
