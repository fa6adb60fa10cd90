"""Rows of ids -> one padded batch.

The stock causal collator sets every label that equals the pad id to -100, which un-teaches stopping where padding
borrows the end token, and overwrites the labels that it is given; the stock masked one draws other masks at every
evaluation. Here labels follow what is text and what is padding, and masks are a function of (seed, epoch, text).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain import denoise, masking
from lmtrain.chance import uniform
from lmtrain.errors import InputError
from lmtrain.tokenizer import check_words

Row = dict[str, Any]
"""`input_ids` [tokens] and what else an example has; `lengths` [texts] of the texts in it, and their `numbers`;
the `epoch`, None at evaluation, and the `progress` of the training, from 0 to 1."""

Batch = dict[str, torch.Tensor]
"""`input_ids`, `attention_mask`, `labels` [rows, length]; where texts share a row, `documents`: the number of the text in
its row, from 1 on, 0 for padding. Where pairs share rows, `decoder_documents` [rows, target length] numbers the targets
alike, and `decoder_input_ids` are what the decoder reads (joining.py)."""

Fixed = dict[str, int]
"""Lengths to pad every batch to, by the name of their limit, for a model that reads the padding."""

IGNORED = -100
"""The label of a position that is not predicted, by convention of torch's cross entropy."""


class Collate(Protocol):
    @property
    def fixed(self) -> bool:
        """Whether every batch is padded to the same length."""

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


def _batch(
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


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where in a row each of its texts begins."""
    return np.cumsum(lengths) - lengths


@dataclass(frozen=True)
class Causal:
    """Labels are the ids themselves, from the second of a text on: the first is predicted by nothing."""

    pad: int
    length: int | None

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def __call__(self, rows: list[Row]) -> Batch:
        return _batch(rows, [self.scored(row) for row in rows], self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids = row["input_ids"].astype(np.int64)
        labels = np.where(row["trained"], ids, IGNORED) if "trained" in row else ids.copy()
        labels[_starts(row["lengths"])] = IGNORED
        return ids, labels


def causal(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Causal:
    return Causal(pad_id(tokenizer), (fixed or {}).get("max_length"))


@dataclass(frozen=True)
class Masked:
    """A share of the tokens is to be predicted; of these most are masked, some replaced, some kept (BERT, 2018).

    Of words and spans see masking.py. What becomes of a token is drawn for each by itself, of a span for all of it.
    """

    pad: int
    length: int | None
    seed: int
    mask: int
    special: np.ndarray
    ordinary: np.ndarray
    """The ids that can be masked, and put in the place of others."""
    probability: float
    to_mask: float
    to_replace: float
    what: str = "token"
    """Or word, or span."""
    schedule: tuple[float, float] | None = None

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def __call__(self, rows: list[Row]) -> Batch:
        scored = [self.scored(row) if "labels" not in row else (row["input_ids"], row["labels"]) for row in rows]
        return _batch(rows, scored, self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = row["input_ids"].astype(np.int64), row["lengths"]
        numbers = np.repeat(row["numbers"], lengths)
        positions = np.arange(len(ids)) - np.repeat(_starts(lengths), lengths)
        key = self.seed, 0 if row["epoch"] is None else row["epoch"] + 1
        chance, fate, other = (uniform((*key, draw), numbers, positions) for draw in range(3))
        free = ~np.isin(ids, self.special)
        if self.what == "token":
            chosen = (chance < self.share(row)) & free
        else:
            chosen, place = masking.choose(
                row["word_starts"], free, lengths, row["numbers"], self.share(row), key, self.what == "span"
            )
            # Along the window every span is as likely to lie anywhere: its first part is masked, and so on.
            fate = place if self.what == "span" else fate
        others = self.ordinary[(other * len(self.ordinary)).astype(np.int64)]
        replaced = np.where(fate < self.to_mask + self.to_replace, others, ids)
        shown = np.where(fate < self.to_mask, self.mask, replaced)
        return np.where(chosen, shown, ids), np.where(chosen, ids, IGNORED)

    def share(self, row: Row) -> float:
        """Of the tokens, how many are to be predicted."""
        if self.schedule is None or row["epoch"] is None:
            return self.probability
        first, last = self.schedule
        return first + (last - first) * row["progress"]


def masked(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Masked:
    """Raises InputError where the tokenizer has no mask token, or knows no words where they are to be masked."""
    if tokenizer.mask_token_id is None:
        raise InputError("the tokenizer has no mask token, so nothing can be masked: "
                         "use a masked model's own, or train one with --tokenizer wordpiece:8000")  # fmt: skip
    if data.masking != "token":
        check_words(tokenizer)
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    to_mask, to_replace, _ = (int(part) / 100 for part in data.mask_split.split("/"))
    return Masked(
        pad_id(tokenizer), (fixed or {}).get("max_length"), seed, tokenizer.mask_token_id, special, ordinary,
        data.mask_probability, to_mask, to_replace, data.masking, data.schedule,
    )  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Source and target padded apart; the decoder's inputs follow from the labels, see loss.py."""

    pad: int
    source_length: int | None
    target_length: int | None

    @property
    def fixed(self) -> bool:
        return self.source_length is not None or self.target_length is not None

    def __call__(self, rows: list[Row]) -> Batch:
        return _batch(rows, [self.scored(row) for row in rows], self.pad, self.source_length, self.target_length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        return row["input_ids"], row["labels"]


@dataclass(frozen=True)
class Denoised(Pairs):
    """Source and target made of a text anew every epoch (denoise.py); those that are there already are taken as they are."""

    noise: denoise.Noise
    seed: int

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        if "labels" in row:
            return super().scored(row)
        (number,), starts = row["numbers"], row.get("sentence_starts")
        return self.noise(row["input_ids"], starts, int(number), (self.seed, row["epoch"] + 1))


def pairs(tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: Fixed | None = None) -> Pairs:
    """Raises InputError where the tokenizer has not the special tokens that --denoise needs."""
    lengths = fixed or {}
    sides = pad_id(tokenizer), lengths.get("max_source_length"), lengths.get("max_target_length")
    noise = None if data.denoise == "none" else denoise.noise(tokenizer, data)
    if noise is None or isinstance(noise, denoise.GapSentences):
        return Pairs(*sides)
    return Denoised(*sides, noise, seed)
