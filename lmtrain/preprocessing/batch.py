"""Collate rows of token ids into a padded batch.

Transformers' causal collator overwrites given labels and sets every label that equals the pad id to -100. If the end
token is also the pad token, the model never learns to stop. Its masked collator draws different masks at every
evaluation. The collators here mask only padding, and masks are a function of (seed, epoch, text).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""The columns of one example: `input_ids` [tokens] and others; the `lengths` and `numbers` [texts] of its texts;
`epoch` (None at evaluation), and `progress`, the fraction of training that is done."""

Batch = dict[str, torch.Tensor]
"""`input_ids`, `attention_mask`, `labels` [rows, length]. If rows hold several texts, `documents` has the number of each
token's text in its row, from 1; padding has 0. If rows hold several pairs, `decoder_documents` [rows, target length]
numbers the targets in the same way, and `decoder_input_ids` are the decoder's inputs (padding_free.py)."""

IGNORED = -100
"""Label of a position that is not predicted: the default `ignore_index` of torch's cross entropy."""


class Collator(Protocol):
    @property
    def fixed(self) -> bool:
        """Whether every batch is padded to the same length."""

    def padded_to(self, lengths: Mapping[str, int]) -> "Collator":
        """A copy that pads every batch to these lengths (option name -> tokens)."""

    def __call__(self, rows: list[Row]) -> Batch: ...

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """(input ids, labels). A pair's labels are those of its target."""


def padded(arrays: list[np.ndarray], fill: int, length: int | None = None) -> torch.Tensor:
    """[rows, length or longest] int64, padded on the right with `fill`."""
    longest = length or max(map(len, arrays))
    out = np.full((len(arrays), longest), fill, dtype=np.int64)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad id, else the end id, else 0. Any id will do, because attention mask and labels hide it."""
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
    """Offset of each text in its row."""
    return np.cumsum(lengths) - lengths
