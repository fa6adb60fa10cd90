"""Classification: everything that only `classify` does.

A text, or a pair of texts, has one label, which the model predicts from the state of its first token; in a tagged sentence each
word has a tag, which it predicts from the word's first token (Devlin et al., "BERT", 2019, sections 4.1 and 5.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.modeling.classifier_head import labels_of
from lmtrain.objectives.defaults import Defaults
from lmtrain.objectives.generation import GenerationSettings, decode
from lmtrain.objectives.mlm import MaskedLM
from lmtrain.objectives.prompting import Answer, PromptingOptions, text_of
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
        if not labels and own and kind in LABELLED and words != _labels_of(config)[1]:
            does = ("gives texts a label", "tags words") if words else ("tags words", "gives texts a label")
            raise InputError(
                f"{config.name_or_path or config.model_type}: this model {does[0]}, but the rows need one that {does[1]}"
            )
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
        """Columns `input_ids`, `labels` (one a row, or one a token) and, where there are pairs, `token_type_ids`.

        Raises UsageError for a length that leaves no room for text, InputError for a label that is not known.
        """
        assert isinstance(data, ClassData)
        limits = limits.resolve("max_length", data.max_length or min(limits.positions or LONGEST, LONGEST))
        length, pairs = limits["max_length"], not self.words and any(PAIR_SEPARATOR in text for text, _ in rows.values)
        if length <= tokenizer.num_special_tokens_to_add(pair=pairs):
            raise UsageError(f"--max-length {length}: leaves no room between the special tokens")
        if self.words:
            check_is_fast(tokenizer)
        ledgers, origins, unscored = start_ledgers(rows), [], 0
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": []} | ({"token_type_ids": []} if pairs else {})
        for index, (content, label) in enumerate(rows.values):
            numbers = self._numbers(labels_of_row(label), rows.location(index))
            parts = [joined(content)] if self.words else content.split(PAIR_SEPARATOR, 1)
            encoded = tokenizer(
                *parts, truncation=True, max_length=length, return_offsets_mapping=self.words, verbose=False
            )
            ids, ledger = encoded["input_ids"], ledgers[rows.source(index)]
            whole = len(tokenizer(*parts, verbose=False)["input_ids"]) if len(ids) >= length else len(ids)
            if whole <= len(ids):
                ledger.use(len(ids))
            elif not apply_long_policy(ledger, whole, len(ids), rows.location(index), data.on_long):
                continue
            labels = np.array(numbers)
            if self.words:
                labels = _of_first_tokens(content, numbers, encoded["offset_mapping"])
            unscored += len(numbers) - int((labels != IGNORED).sum())
            own = {"input_ids": ids, "labels": labels, "token_type_ids": encoded.get("token_type_ids", [0] * len(ids))}
            for name, column in columns.items():
                column.append(own[name])
            origins.append(index)
        warnings = (
            (f"{unscored:,} words are cut off or have no token, so their tags are not scored",) if unscored else ()
        )
        ragged = {name: Ragged.of(own) for name, own in columns.items()}
        if "token_type_ids" not in tokenizer.model_input_names:
            ragged.pop("token_type_ids", None)
        return finish_examples(ragged, ledgers, rows, origins, limits, warnings=warnings)

    def _numbers(self, labels: list[str], where: str) -> list[int]:
        """The class numbers of labels. Raises InputError for one that is not known."""
        if unknown := next((own for own in labels if own not in self.labels), None):
            known = ", ".join(visible(own) for own in self.labels[:10])
            raise InputError(f"{where}: the label '{visible(unknown)}' is not known; there are {known}")
        return [self.labels.index(own) for own in labels]

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
        from lmtrain.modeling.network import positions

        answers: list[Answer] = []
        for prompt in prompts:
            words = text_of(prompt).split()
            parts = [joined(words)] if self.words else text_of(prompt).split(PAIR_SEPARATOR, 1)
            length = min(positions(network) or LONGEST, LONGEST)
            cut = {"truncation": True, "max_length": length, "verbose": False}
            encoded = tokenizer(*parts, return_tensors="pt", return_offsets_mapping=self.words, **cut)
            spans = encoded.pop("offset_mapping")[0].tolist() if self.words else []
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


def _of_first_tokens(words: Sequence[str], numbers: Sequence[int], spans: Sequence[Sequence[int]]) -> np.ndarray:
    """[tokens] the class number of each word at its first token, IGNORED elsewhere; `spans` as in `first_tokens`."""
    labels, places = np.full(len(spans), IGNORED), first_tokens(words, spans)
    labels[places[places >= 0]] = np.array(numbers)[places >= 0]
    return labels


def _labels_of(config: PretrainedConfig) -> tuple[tuple[str, ...], bool]:
    """(the labels that a model's head has names for, whether it tags words); none of a model without such a head."""
    classes = config.architectures or []
    if not is_classifier(classes):
        return (), False
    return labels_of(config), "TokenClass" in classes[0]


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
