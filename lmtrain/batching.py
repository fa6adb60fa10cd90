"""Which rows share a batch, and in which order."""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from lmtrain.encode import Key


class Order(Sampler[Key]):
    """A new seeded order of the rows for every epoch, filled up to a multiple of `multiple`.

    What fills it is the blank row, number `rows`, which trains nothing: with several processes every one of them gets
    equally many batches, and no row counts twice (accelerate would repeat rows from the start of the epoch).
    """

    def __init__(self, rows: int, seed: int, multiple: int = 1):
        self.rows, self.seed, self.multiple, self.epoch = rows, seed, multiple, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.multiple) * self.multiple

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        yield from ((epoch, int(row)) for row in order)
        yield from ((epoch, self.rows) for _ in range(len(self) - self.rows))


def padding_fraction(lengths: list[np.ndarray], order: np.ndarray, batch_size: int) -> float:
    """The share of padding among all ids that the model reads in one epoch; `lengths` holds one array a column."""
    read = used = 0
    for column in lengths:
        for start in range(0, len(order), batch_size):
            batch = column[order[start : start + batch_size]]
            read += int(batch.max()) * len(batch)
            used += int(batch.sum())
    return 1 - used / max(read, 1)
