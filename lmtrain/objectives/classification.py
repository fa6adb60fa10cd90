"""Classification: everything that only `classify` does.

A text, or a pair of texts, has one label, which the model predicts from the state of its first token; in a tagged sentence each
word has a tag, which it predicts from the word's first token (Devlin et al., "BERT", 2019, sections 4.1 and 5.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from lmtrain.config.architectures import is_classifier
from lmtrain.config.data import Data
from lmtrain.config.labelled_data import PAIR_SEPARATOR, ClassData
from lmtrain.data.labels import LABELLED, labels_of_row
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, visible
from lmtrain.objectives.defaults import Defaults
from lmtrain.objectives.generation import GenerationSettings, decode
from lmtrain.objectives.mlm import MaskedLM
from lmtrain.objectives.prompting import Answer, PromptingOptions, check_length, text_of
from lmtrain.objectives.samples import RowTexts, Sample
from lmtrain.objectives.token_roles import View
from lmtrain.objectives.views import LABEL_VIEW
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, Row, pad_id, padded, padded_batch
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import apply_long_policy, finish_examples, start_ledgers
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.words import check_is_fast, first_tokens, joined

LONGEST = 512
"""Tokens of a row at most, unless --max-length says otherwise."""

SHOWN = 5
"""Labels that an answer names, with their probabilities."""


@dataclass(frozen=True)
class Classification(Defaults):
    """Give texts or words their labels."""

    labels: tuple[str, ...] = ()
    words: bool = False
    """Whether words are tagged; otherwise a text has one label."""

    name = "classify"
    special_tokens = MaskedLM.special_tokens
    shift = 0
    writes = False

    @property
    def auto_model(self) -> Any:
        return AutoModelForTokenClassification if self.words else AutoModelForSequenceClassification

    @property
    def task_type(self) -> str | None:
        return "TOKEN_CLS" if self.words else "SEQ_CLS"

    @property
    def view(self) -> View:
        return LABEL_VIEW

    def fitted(self, config: PretrainedConfig, kind: str | None, labels: Sequence[str]) -> Self:
        """The objective with the labels of the model, if it has those of the data already; else with those of the data.

        Without `labels` those of the model are taken. Raises InputError where there are none.
        """
        own, words = _labels_of(config)
        words = kind == "tagged" if kind in LABELLED else words
        if not labels and not own:
            raise InputError(
                f"{config.name_or_path or config.model_type}: this model gives no labels; train it with classify"
            )
        if labels and len(labels) < 2 and not set(labels) < set(own):
            raise InputError(f"all training rows have one label, '{visible(labels[0])}'; at least two are needed")
        return replace(self, labels=own if set(labels) <= set(own) else tuple(labels), words=words)

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """Columns `input_ids`, `labels` (one a row, or one a token) and, for pairs, `token_type_ids`. Raises InputError."""
        assert isinstance(data, ClassData)
        limits = limits.resolve("max_length", data.max_length or min(limits.positions or LONGEST, LONGEST))
        ledgers, origins = start_ledgers(rows), []
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for index, whole, content in self._encoded(rows, tokenizer, limits["max_length"]):
            left, ledger = len(content["input_ids"]), ledgers[rows.source(index)]
            if whole <= left:
                ledger.use(left)
            elif not apply_long_policy(ledger, whole, left, rows.location(index), data.on_long):
                continue
            for name, ids in content.items():
                columns.setdefault(name, []).append(ids)
            origins.append(index)
        ragged = {name: Ragged.of(own) for name, own in columns.items()}
        return finish_examples(ragged, ledgers, rows, origins, limits)

    def _encoded(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield (index of the row, its tokens before it was cut, its columns)."""
        index_of = {label: number for number, label in enumerate(self.labels)}
        if self.words:
            check_is_fast(tokenizer)
        for index, (content, label) in enumerate(rows.values):
            if unknown := next((own for own in labels_of_row(label) if own not in index_of), None):
                known = ", ".join(visible(own) for own in self.labels[:10])
                raise InputError(
                    f"{rows.location(index)}: the label '{visible(unknown)}' is not known; there are {known}"
                )
            numbers = [index_of[own] for own in labels_of_row(label)]
            if self.words:
                yield index, *self._tagged(content, numbers, tokenizer, length)
                continue
            text, pair, second = content.partition(PAIR_SEPARATOR)
            parts = (text, second) if pair else (text,)
            encoded = tokenizer(*parts, truncation=True, max_length=length, verbose=False)
            full = len(encoded["input_ids"]) >= length
            whole = len(tokenizer(*parts, verbose=False)["input_ids"]) if full else len(encoded["input_ids"])
            types = {"token_type_ids": encoded["token_type_ids"]} if pair and "token_type_ids" in encoded else {}
            yield index, whole, {"input_ids": encoded["input_ids"], "labels": numbers, **types}

    @staticmethod
    def _tagged(
        words: list[str], numbers: list[int], tokenizer: PreTrainedTokenizerBase, length: int
    ) -> tuple[int, dict[str, Any]]:
        """(tokens before the sentence was cut, columns): a word's tag is the label of its first token."""
        encoded = tokenizer(joined(words), return_offsets_mapping=True, verbose=False)
        ids, places = encoded["input_ids"], first_tokens(words, encoded["offset_mapping"])
        labels = np.full(len(ids), IGNORED)
        labels[places[places >= 0]] = np.array(numbers)[places >= 0]
        if len(ids) > length:
            short = tokenizer(joined(words), truncation=True, max_length=length, verbose=False)["input_ids"]
            kept = len(short) - sum(i in set(tokenizer.all_special_ids) for i in short[-1:])
            return len(ids), {"input_ids": short, "labels": [*labels[:kept], *[IGNORED] * (len(short) - kept)]}
        return len(ids), {"input_ids": ids, "labels": labels}

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> LabelCollator:
        return LabelCollator(pad_id(tokenizer), self.words)

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths."""
        assert isinstance(data, ClassData)
        return {"labels": len(self.labels), "on_long": data.on_long}

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
        """A text, the label or the tags that the model gives it, and its own."""
        samples = []
        for row in rows:
            batch = {name: tensor.to(network.device) for name, tensor in collator([examples[None, row]]).items()}
            labels = batch.pop("labels")[0].cpu().numpy()
            best = network(**batch).logits.argmax(-1).reshape(-1).cpu().numpy()
            shown = batch["input_ids"][0].cpu().numpy()
            texts = self.describe_row(tokenizer, shown, labels, best[labels != IGNORED])
            names = [" ".join(labels_of_row(own)) for own in (texts["prediction"], texts["references"][0])]
            samples.append({"input": texts["source"], "output": names[0], "reference": names[1]})
        return samples

    @torch.no_grad()
    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """The label of each text with the probabilities of the best ones; the tag of each word of it."""
        answers: list[Answer] = []
        for prompt in prompts:
            words = text_of(prompt).split()
            text, _, second = text_of(prompt).partition(PAIR_SEPARATOR)
            parts = [joined(words)] if self.words else [text, second] if second else [text]
            encoded = tokenizer(*parts, return_tensors="pt", return_offsets_mapping=self.words, verbose=False)
            spans = encoded.pop("offset_mapping")[0].tolist() if self.words else []
            check_length(network, encoded["input_ids"].shape[1], prompt)
            shares = network(**encoded.to(network.device)).logits[0].float().softmax(-1).cpu()
            if self.words:
                places = first_tokens(words, spans)
                tags = [self.labels[int(shares[at].argmax())] if at >= 0 else "" for at in places]
                shown = " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
                answers.append({"output": shown, "tags": tags})
                continue
            best = shares.topk(min(SHOWN, len(self.labels)))
            named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found = [{"label": self.labels[number], "probability": share} for number, share in named]
            answers.append({"output": found[0]["label"], "labels": found})
        return answers

    def describe_row(
        self, tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, labels: np.ndarray, best: np.ndarray
    ) -> RowTexts:
        """The text, the label that is predicted, and its own; of a tagged sentence a list of tags."""
        predicted, true = ([self.labels[number] for number in own] for own in (best, labels[labels != IGNORED]))
        if self.words:
            return {"source": decode(tokenizer, shown), "prediction": predicted, "references": [true]}
        return {"source": decode(tokenizer, shown), "prediction": predicted[0], "references": true}


def _labels_of(config: PretrainedConfig) -> tuple[tuple[str, ...], bool]:
    """(the labels that a model's head has names for, whether it tags words); none of a model without such a head."""
    classes = config.architectures or []
    if not is_classifier(classes):
        return (), False
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return tuple(names[number] for number in sorted(names)), "TokenClass" in classes[0]


@dataclass(frozen=True)
class LabelCollator:
    """Texts with a label each, or with one for each token."""

    pad: int
    words: bool
    length: int | None = None
    """Tokens that every row is padded to; None: as long as the longest of its batch."""

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def padded_to(self, lengths: Mapping[str, int]) -> LabelCollator:
        return replace(self, length=lengths["max_length"])

    def __call__(self, rows: list[Row]) -> Batch:
        target = self.length if self.words else None
        batch = padded_batch(rows, [self.scored(row) for row in rows], self.pad, self.length, target)
        if any("token_type_ids" in row for row in rows):
            # A blank row, which fills up the last batches, has none.
            types = [row.get("token_type_ids", np.zeros(len(row["input_ids"]), np.int64)) for row in rows]
            batch["token_type_ids"] = padded(types, 0, self.length)
        return batch

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        return row["input_ids"], row["labels"]
