"""Which rows share a batch, and in which order."""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from lmtrain.collate import IGNORED, Collate
from lmtrain.encode import Examples, Key
from lmtrain.errors import InputError


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


def account(examples: Examples, collate: Collate, batch_size: int, flag: str, seed: int | None = None) -> None:
    """Fill in what the ledger can only know once rows are batches: in the first epoch of `seed`, or at evaluation.

    Raises InputError, naming `flag`, where not one token would be predicted.
    """
    epoch = None if seed is None else 0
    count = 0
    for start in range(0, len(examples), 256):
        rows = [examples[epoch, row] for row in range(start, min(start + 256, len(examples)))]
        count += int((collate(rows)["labels"] != IGNORED).sum())
    examples.ledger.tokens_trained = count
    columns = [examples.columns[name].lengths for name in ("input_ids", "labels") if name in examples.columns]
    order = np.argsort(-examples.lengths, kind="stable")
    if seed is not None:
        order = np.array([row for _, row in Order(len(examples), seed)])
    examples.ledger.padding_fraction = padding_fraction(columns, order, batch_size)
    if not count:
        raise InputError(f"{flag}: not one token of it would be predicted: the texts are too short, "
                         "or --mask-probability is too low")  # fmt: skip


def padding_fraction(lengths: list[np.ndarray], order: np.ndarray, batch_size: int) -> float:
    """The share of padding among all ids that the model reads in one epoch; `lengths` holds one array a column."""
    read = used = 0
    for column in lengths:
        for start in range(0, len(order), batch_size):
            batch = column[order[start : start + batch_size]]
            read += int(batch.max()) * len(batch)
            used += int(batch.sum())
    return 1 - used / max(read, 1)
