"""Masked language modeling: everything that only `mlm` does.

A share of the tokens is hidden, replaced or kept, and predicted from both sides. Masks are a function of
(seed, epoch, text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from lmtrain.config.data import Data, MlmData
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.objectives.defaults import Defaults, filled
from lmtrain.objectives.generation import COMPLETION_TOKENS, GenerationSettings, decode
from lmtrain.objectives.prompting import Answer, PromptingOptions, check_length, text_of
from lmtrain.objectives.samples import RowTexts, Sample
from lmtrain.objectives.token_roles import View
from lmtrain.objectives.views import MASKED_VIEW
from lmtrain.preprocessing import whole_word_masking
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, Row, pad_id, padded_batch, text_starts
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    TokenizedDocuments,
    fit_document,
    split_into_rows,
    start_ledgers,
)
from lmtrain.preprocessing.hashed_random import uniform
from lmtrain.preprocessing.tokenizing import check_words, ids_and_words, ids_of, special_token_ids
from lmtrain.preprocessing.train_tokenizer import SpecialTokens
from lmtrain.preprocessing.vocabulary import id_count, vocabulary_ids

MASKS = ("[MASK]", "<mask>")
"""Spellings of a mask in a prompt, whatever the tokenizer calls it."""


class MaskedLM(Defaults):
    """Fill masked tokens from both sides."""

    name = "mlm"
    auto_model = AutoModelForMaskedLM
    task_type = None
    special_tokens = SpecialTokens(
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "[CLS] $A [SEP]",
    )
    shift = 0
    writes = False

    @property
    def view(self) -> View:
        return MASKED_VIEW

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Raise InputError if the mask token is missing, or if --masking needs words and the tokenizer has none."""
        assert isinstance(data, MlmData)
        if tokenizer.mask_token_id is None:
            raise InputError(
                "the tokenizer has no mask token, so nothing can be masked: "
                "use a masked model's own, or train one from scratch with --tokenizer wordpiece:8000"
            )
        if data.masking != "token":
            check_words(tokenizer)

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """Column `input_ids`, every row between the tokenizer's special tokens ([CLS] … [SEP]).

        Where words are masked, `word_starts` (bool): whether a token begins a word, or belongs to no text.
        Raises UsageError for a length that leaves no room for text.
        """
        assert isinstance(data, MlmData)
        limits = limits.resolve("max_length", data.max_length)
        length = limits["max_length"]
        before, after = special_token_ids(tokenizer)
        room = length - len(before) - len(after)
        if room < 1:
            raise UsageError(
                f"--max-length {length}: leaves no room between {len(before) + len(after)} special tokens"
            )
        ledgers, policy = start_ledgers(rows), data.on_long or "split"
        separator = after[:1] if data.packs_blocks else []
        in_words = data.masking != "token"
        texts = TokenizedDocuments(rows, tokenizer, "word_starts" if in_words else None)
        for parts, document in texts.encoded(ids_and_words if in_words else ids_of):
            followed = rows.has_next or document[-1] + 1 < len(rows.values)
            parting = separator if followed and rows.ends(document[-1]) else []
            texts.begin(document)
            if in_words:
                texts.take(chain(parts, [(parting, [True] * len(parting))]))
            else:
                texts.ids.extend(chain(chain.from_iterable(parts), parting))
            texts.end(document, fit_document(ledgers, texts.new_tokens, room, rows, document, policy))
        columns = {name: column.done() for name, column in texts.columns.items()}
        return split_into_rows(texts, columns, room, ledgers, limits, data.packs_blocks, (before, after))

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> MaskedCollator:
        """Raises InputError as `check_tokenizer`."""
        assert isinstance(data, MlmData)
        self.check_tokenizer(tokenizer, data)
        special = np.array(sorted(set(tokenizer.all_special_ids)))
        ordinary = np.setdiff1d(vocabulary_ids(tokenizer), special)
        to_mask, to_replace, _ = (int(part) / 100 for part in data.mask_split.split("/"))
        return MaskedCollator(
            pad_id(tokenizer),
            seed,
            tokenizer.mask_token_id,
            special,
            ordinary,
            data.mask_probability,
            to_mask,
            to_replace,
            data.masking,
            data.schedule,
        )

    def misplaced_labels(self, batch: Batch, collator: Any) -> tuple[int, int]:
        """Of the chosen tokens that are not masked some are kept, as --mask-split says: input and label are equal there.

        The last tenth of 80/10/10 is half of them. Nothing can be said where hardly any is kept.
        """
        shown = (batch["labels"] != IGNORED) & (batch["input_ids"] != collator.mask)
        kept = 1 - collator.to_mask - collator.to_replace
        if kept < (1 - collator.to_mask) / 4:
            return 0, 0
        wrong = shown & (batch["labels"] != batch["input_ids"])
        return int(wrong.sum()), int(shown.sum())

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths."""
        assert isinstance(data, MlmData)
        unit = "" if data.masking == "token" else f"x{data.masking}"
        masks = f"{data.mask_probability:g}x{data.mask_split}{unit}"
        packing = data.packs_blocks if kind == "text" else None
        return {"packing": packing, "masks": masks, "seed": seed, "on_long": data.on_long}

    @torch.no_grad()
    def sample(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        rows: Sequence[int],
        collator: Collator,
        settings: GenerationSettings,
    ) -> list[Sample]:
        """The start of a row: masked, with the model's predictions filled in, and the original."""
        samples = []
        for row in rows:
            batch = {name: tensor.to(network.device) for name, tensor in collator([examples[None, row]]).items()}
            labels = batch.pop("labels")[0, :COMPLETION_TOKENS]
            shown = batch["input_ids"][0, :COMPLETION_TOKENS]
            best = network(**batch).logits[0, :COMPLETION_TOKENS].argmax(-1)[labels != IGNORED]
            texts = self.describe_row(tokenizer, *(tensor.cpu().numpy() for tensor in (shown, labels, best)))
            samples.append(
                {"input": texts["source"], "output": texts["prediction"], "reference": texts["references"][0]}
            )
        return samples

    @torch.no_grad()
    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """Each text with its masks filled by their most probable tokens, and the best candidates of each mask.

        Raises InputError if a text has no mask.
        """
        if tokenizer.mask_token is None:
            raise InputError("the tokenizer has no mask token, so there is nothing to fill")
        answers = []
        for prompt in prompts:
            text = text_of(prompt)
            for mask in MASKS:
                text = text.replace(mask, tokenizer.mask_token)
            inputs = torch.tensor([tokenizer(text)["input_ids"]], device=network.device)
            check_length(network, inputs.shape[1], prompt)
            at = (inputs[0] == tokenizer.mask_token_id).nonzero()[:, 0]
            if not len(at):
                raise InputError(
                    f"{visible(text)!r}: nothing to fill; write {tokenizer.mask_token} where words are missing"
                )
            logits = network(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[
                0, at, : id_count(tokenizer)
            ]
            top = logits.float().softmax(-1).topk(min(options.candidates, len(tokenizer)))
            inputs[0, at] = top.indices[:, 0]
            masks = [
                [
                    {"token": str(tokenizer.decode([int(i)])).strip(), "probability": float(p)}
                    for i, p in zip(*best, strict=True)
                ]
                for best in zip(top.indices, top.values, strict=True)
            ]
            answers.append({"output": decode(tokenizer, inputs[0]), "masks": masks})
        return answers

    def describe_row(
        self,
        tokenizer: PreTrainedTokenizerBase,
        shown: np.ndarray,
        labels: np.ndarray,
        best: np.ndarray,
    ) -> RowTexts:
        """The row masked, with the predictions filled in, and the original."""
        predicted, truth, scored = filled(shown, labels, best)
        masked = np.where(scored, tokenizer.mask_token_id, shown)
        return {
            "source": tokenizer.decode(masked.tolist()),
            "prediction": decode(tokenizer, predicted),
            "references": [decode(tokenizer, truth)],
        }


@dataclass(frozen=True)
class MaskedCollator:
    """A share of the tokens is predicted: most of these are masked, some replaced, some kept (BERT, 2018).

    Whether a token is masked, replaced or kept is drawn per token, for a span once (whole_word_masking.py).
    """

    pad: int
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
    """The probability at the first and at the last step, where it changes."""
    length: int | None = None
    """Tokens that every row is padded to; None: as long as the longest of its batch."""

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def padded_to(self, lengths: Mapping[str, int]) -> MaskedCollator:
        return replace(self, length=lengths["max_length"])

    def __call__(self, rows: list[Row]) -> Batch:
        scored = [self.scored(row) if "labels" not in row else (row["input_ids"], row["labels"]) for row in rows]
        return padded_batch(rows, scored, self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = row["input_ids"].astype(np.int64), row["lengths"]
        numbers = np.repeat(row["numbers"], lengths)
        positions = np.arange(len(ids)) - np.repeat(text_starts(lengths), lengths)
        key = self.seed, 0 if row["epoch"] is None else row["epoch"] + 1
        chance, fate, other = (uniform((*key, draw), numbers, positions) for draw in range(3))
        free = ~np.isin(ids, self.special)
        if self.what == "token":
            chosen = (chance < self.share(row)) & free
        else:
            chosen, place = whole_word_masking.choose(
                row["word_starts"], free, lengths, row["numbers"], self.share(row), key, self.what == "span"
            )
            # Along the window every span is as likely to lie anywhere: its first part is masked, and so on.
            fate = place if self.what == "span" else fate
        others = self.ordinary[(other * len(self.ordinary)).astype(np.int64)]
        replaced = np.where(fate < self.to_mask + self.to_replace, others, ids)
        shown = np.where(fate < self.to_mask, self.mask, replaced)
        return np.where(chosen, shown, ids), np.where(chosen, ids, IGNORED)

    def share(self, row: Row) -> float:
        """The share of tokens to predict."""
        if self.schedule is None or row["epoch"] is None:
            return self.probability
        first, last = self.schedule
        return first + (last - first) * row["progress"]
