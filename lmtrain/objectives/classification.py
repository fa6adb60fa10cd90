"""Classification: everything that only `classify` does.

A text, or a pair of texts, has one label, which the model predicts from the state of its first token; in a tagged sentence each
word has a tag, which it predicts from the word's first token (Devlin et al., "BERT", 2019, sections 4.1 and 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lmtrain.config.data import Data
from lmtrain.config.heads import HEADS
from lmtrain.config.labelled_data import PAIR_SEPARATOR, ClassData
from lmtrain.data.labels import LABELLED, labels_of_row
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.modeling.classifier_head import head_of, labels_of
from lmtrain.modeling.label_loss import as_bits, from_bits
from lmtrain.objectives.generation import GenerationSettings, decode
from lmtrain.objectives.label_objective import LabelObjective
from lmtrain.objectives.prompting import Answer, PromptingOptions, text_of
from lmtrain.objectives.question_answering import QuestionAnswering
from lmtrain.objectives.samples import RowTexts, Sample
from lmtrain.objectives.token_roles import View
from lmtrain.objectives.views import LABEL_VIEW
from lmtrain.preprocessing.batch import IGNORED, Collator, pad_id
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import apply_long_policy, finish_examples, start_ledgers
from lmtrain.preprocessing.label_collator import LabelCollator
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.words import check_is_fast, first_tokens, joined

LONGEST = 512
"""Tokens of a row at most, unless --max-length says otherwise."""

SHOWN = 5
"""Labels that an answer names, with their probabilities."""

DOES = {
    "labelled": "gives texts a label",
    "several": "gives texts any of several labels",
    "number": "gives texts a number",
    "tagged": "tags words",
    "question": "answers questions",
}
"""Kind of rows -> what a model for them does."""


@dataclass(frozen=True)
class Classification(LabelObjective):
    """Give texts or words their labels: one of several, `several` at once, a `number`, or a tag for each word."""

    @property
    def words(self) -> bool:
        """Whether words are tagged; otherwise texts have labels."""
        return self.kind == "tagged"

    @property
    def view(self) -> View:
        return LABEL_VIEW

    def fitted(
        self, config: PretrainedConfig, kind: str | None, labels: Sequence[str]
    ) -> Classification | QuestionAnswering:
        """The objective for these rows, with the labels of the model if it has those of the data already.

        Without rows or `labels` those of the model are taken. Raises InputError where there are none.
        """
        model, own = config.name_or_path or config.model_type, head_of(config)
        kind = kind if kind in LABELLED else own
        if kind is None or not (labels or own):
            raise InputError(f"{model}: this model gives no labels; train it with classify")
        if not labels and own != kind:
            problem = HEADS[own].problem_type if own else None
            remedy = f"; --problem-type {problem} reads labels so" if problem else ""
            raise InputError(f"{model}: this model {DOES[own or '']}, but the rows need one that {DOES[kind]}{remedy}")
        of_model = labels_of(config) if own == kind else ()
        if kind not in ("number", "several") and len(labels) == 1 and not set(labels) <= set(of_model):
            raise InputError(f"all training rows have one label, '{visible(labels[0])}'; at least two are needed")
        found = of_model if set(labels) <= set(of_model) else tuple(labels)
        return QuestionAnswering(found) if kind == "question" else Classification(found, kind)

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
            numbers = self._targets(labels_of_row(label), rows.location(index))
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
            labels = np.array(numbers, np.int32)
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

    def _targets(self, labels: list[Any], where: str) -> Sequence[int] | np.ndarray:
        """What is learnt of a row: class numbers, or for each class whether it applies, or the bits of a number.

        Raises InputError for a label that is not known.
        """
        if self.kind == "number":
            return as_bits(labels)
        if unknown := next((own for own in labels if own not in self.labels), None):
            known = ", ".join(visible(own) for own in self.labels[:10])
            raise InputError(f"{where}: the label '{visible(unknown)}' is not known; there are {known}")
        if self.kind == "several":
            return [int(own in labels) for own in self.labels]
        return [self.labels.index(own) for own in labels]

    def names_of(self, targets: np.ndarray) -> list[Any]:
        """The inverse of `_targets`, of what is true or of what a model predicts: labels, or a number."""
        if self.kind == "number":
            return [float(number) for number in from_bits(targets)]
        if self.kind == "several":
            return [self.labels[number] for number in np.flatnonzero(targets == 1)]
        return [self.labels[number] for number in targets]

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
            best = self._best(network(**batch).logits[0]).reshape(-1)
            shown = batch["input_ids"][0].cpu().numpy()
            texts = self.describe_row(tokenizer, shown, labels, best[: len(labels)][labels != IGNORED])
            names = [
                " ".join(f"{own:.4g}" if isinstance(own, float) else own for own in labels_of_row(given))
                for given in (texts["prediction"], texts["references"][0])
            ]
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
            logits = network(**encoded.to(network.device)).logits[0].float().cpu()
            if self.kind in ("several", "number"):
                answers.append(self._answer(logits))
                continue
            shares = logits.softmax(-1)
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

    def _best(self, logits: torch.Tensor) -> np.ndarray:
        """What a model predicts by its scores of a row [classes], or of its tokens, in the form of `_targets`."""
        if self.kind == "number":
            return as_bits(logits.float().cpu().numpy())
        return ((logits > 0).int() if self.kind == "several" else logits.argmax(-1)).cpu().numpy()

    def _answer(self, logits: torch.Tensor) -> Answer:
        """The number of a text, or the labels that are more likely than not, with the probabilities of the best ones."""
        names = self.names_of(self._best(logits))
        if self.kind == "number":
            return {"output": f"{names[0]:.6g}", "number": names[0]}
        best = logits.sigmoid().sort(descending=True)
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found = [{"label": self.labels[number], "probability": share} for number, share in named]
        return {"output": ", ".join(names), "labels": found[: max(SHOWN, len(names))]}

    def describe_row(
        self, tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, labels: np.ndarray, best: np.ndarray
    ) -> RowTexts:
        """The text, the label that is predicted, and its own; of several labels, and of a tagged sentence, lists of them."""
        predicted, true = (self.names_of(own) for own in (best, labels[labels != IGNORED]))
        if self.kind in ("tagged", "several"):
            return {"source": decode(tokenizer, shown), "prediction": predicted, "references": [true]}
        return {"source": decode(tokenizer, shown), "prediction": predicted[0], "references": true}


def _of_first_tokens(
    words: Sequence[str], numbers: Sequence[int] | np.ndarray, spans: Sequence[Sequence[int]]
) -> np.ndarray:
    """[tokens] the class number of each word at its first token, IGNORED elsewhere; `spans` as in `first_tokens`."""
    labels, places = np.full(len(spans), IGNORED), first_tokens(words, spans)
    labels[places[places >= 0]] = np.array(numbers)[places >= 0]
    return labels
