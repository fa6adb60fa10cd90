"""Rows of ids -> one padded batch.

The stock causal collator sets every label that equals the pad id to -100, which un-teaches stopping where padding
borrows the end token, and overwrites the labels that it is given; the stock masked one draws other masks at every
evaluation. Here labels follow what is text and what is padding, and masks are a function of (seed, epoch, row).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError

Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
Collate = Callable[[list[Row]], Batch]

Fixed = dict[str, int]
"""Lengths to pad every batch to, by the name of their limit, for a model that reads the padding."""

IGNORED = -100
"""The label of a position that is not predicted, by convention of torch's cross entropy."""


def padded(arrays: list[np.ndarray], fill: int, length: int | None = None) -> torch.Tensor:
    """[rows, length or longest] int64, filled up on the right."""
    longest = length or max(map(len, arrays))
    out = np.full((len(arrays), longest), fill, dtype=np.int64)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def _inputs(arrays: list[np.ndarray], pad: int, length: int | None) -> Batch:
    return {
        "input_ids": padded(arrays, pad, length),
        "attention_mask": padded([np.ones(len(array), dtype=np.int64) for array in arrays], 0, length),
    }


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do where there is no pad token: the attention mask and the labels hide it."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def causal(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Collate:
    """Labels are the ids themselves, from the second of a row on: the first is predicted by nothing."""
    pad, length = pad_id(tokenizer), (fixed or {}).get("max_length")

    def collate(rows: list[Row]) -> Batch:
        labels = []
        for row in rows:
            own = np.where(row["trained"], row["input_ids"], IGNORED) if "trained" in row else row["input_ids"].copy()
            own[0] = IGNORED
            labels.append(own)
        return {**_inputs([row["input_ids"] for row in rows], pad, length), "labels": padded(labels, IGNORED, length)}

    return collate


def masked(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Collate:
    """A share of the tokens is to be predicted; of these most are masked, some replaced, some kept (BERT, 2018).

    Raises InputError where the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("the tokenizer has no mask token, so nothing can be masked: "
                         "use a masked model's own, or train one with --tokenizer wordpiece:8000")  # fmt: skip
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    to_mask, to_replace, _ = (int(part) / 100 for part in data.mask_split.split("/"))
    pad, length = pad_id(tokenizer), (fixed or {}).get("max_length")

    def draw(row: Row) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = row["key"]
        random = np.random.default_rng((seed, number) if epoch is None else (seed, epoch, number))
        ids = row["input_ids"].astype(np.int64)
        chance, fate = random.random(len(ids)), random.random(len(ids))
        others = ordinary[random.integers(len(ordinary), size=len(ids))]
        chosen = (chance < data.mask_probability) & ~np.isin(ids, special)
        shown = np.where(fate < to_mask, tokenizer.mask_token_id, np.where(fate < to_mask + to_replace, others, ids))
        return np.where(chosen, shown, ids), np.where(chosen, ids, IGNORED)

    def collate(rows: list[Row]) -> Batch:
        drawn = [draw(row) if "labels" not in row else (row["input_ids"], row["labels"]) for row in rows]
        labels = padded([labels for _, labels in drawn], IGNORED, length)
        return {**_inputs([ids for ids, _ in drawn], pad, length), "labels": labels}

    return collate


def pairs(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Collate:
    """Source and target padded apart; the decoder's inputs follow from the labels, see loss.py."""
    pad, lengths = pad_id(tokenizer), fixed or {}

    def collate(rows: list[Row]) -> Batch:
        labels = padded([row["labels"] for row in rows], IGNORED, lengths.get("max_target_length"))
        return {**_inputs([row["input_ids"] for row in rows], pad, lengths.get("max_source_length")), "labels": labels}

    return collate
