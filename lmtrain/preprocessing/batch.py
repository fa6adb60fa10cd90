"""Rows of ids -> one padded batch.

The stock causal collator sets every label that equals the pad id to -100, which un-teaches stopping where padding
borrows the end token, and overwrites the labels that it is given; the stock masked one draws other masks at every
evaluation. Here labels follow what is text and what is padding, and masks are a function of (seed, epoch, text).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""`input_ids` [tokens] and what else an example has; `lengths` [texts] of the texts in it, and their `numbers`;
the `epoch`, None at evaluation, and the `progress` of the training, from 0 to 1."""

Batch = dict[str, torch.Tensor]
"""`input_ids`, `attention_mask`, `labels` [rows, length]; where texts share a row, `documents`: the number of the text in
its row, from 1 on, 0 for padding. Where pairs share rows, `decoder_documents` [rows, target length] numbers the targets
alike, and `decoder_input_ids` are what the decoder reads (padding_free.py)."""

IGNORED = -100
"""The label of a position that is not predicted, by convention of torch's cross entropy."""


class Collator(Protocol):
    @property
    def fixed(self) -> bool:
        """Whether every batch is padded to the same length."""

    def padded_to(self, lengths: Mapping[str, int]) -> "Collator":
        """The same collator, padding every batch to these lengths (by the name of their option)."""

    def __call__(self, rows: list[Row]) -> Batch: ...

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """(the ids that the model is shown, the label of each of them or, of a pair, of its target)."""


def padded(arrays: list[np.ndarray], fill: int, length: int | None = None) -> torch.Tensor:
    """[rows, length or longest] int64, filled up on the right."""
    longest = length or max(map(len, arrays))
    out = np.full((len(arrays), longest), fill, dtype=np.int64)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do where there is no pad token: the attention mask and the labels hide it."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def padded_batch(
    rows: list[Row], scored: list[tuple[np.ndarray, np.ndarray]], pad: int, length: int | None, target: int | None
) -> Batch:
    batch = {
        "input_ids": padded([shown for shown, _ in scored], pad, length),
        "attention_mask": padded([np.ones(len(shown), np.int64) for shown, _ in scored], 0, length),
        "labels": padded([labels for _, labels in scored], IGNORED, target),
    }
    if any(len(row["lengths"]) > 1 for row in rows):
        batch["documents"] = padded([np.repeat(_from(1, row["lengths"]), row["lengths"]) for row in rows], 0, length)
    return batch


def _from(first: int, like: np.ndarray) -> np.ndarray:
    return np.arange(first, first + len(like))


def text_starts(lengths: np.ndarray) -> np.ndarray:
    """Where in a row each of its texts begins."""
    return np.cumsum(lengths) - lengths
