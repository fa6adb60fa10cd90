"""The table of the three objectives, and what an objective has to provide. Only its own file knows which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lmtrain.config.data import Data
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.modeling.classifier_head import LabelHead
from lmtrain.modeling.loss import TokenLoss
from lmtrain.objectives.classification import Classification
from lmtrain.objectives.clm import CausalLM
from lmtrain.objectives.generation import GenerationSettings
from lmtrain.objectives.mlm import MaskedLM
from lmtrain.objectives.prompting import Answer, PromptingOptions
from lmtrain.objectives.samples import RowTexts, Sample
from lmtrain.objectives.seq2seq import Seq2SeqLM
from lmtrain.objectives.token_roles import View
from lmtrain.preprocessing.batch import Batch, Collator
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.train_tokenizer import SpecialTokens


class Objective(Protocol):
    """What the rest of lmtrain asks of an objective."""

    @property
    def name(self) -> str:
        """The command: clm, mlm, seq2seq or classify."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model chooses from, in the order of their class numbers; empty for a language model."""

    @property
    def head(self) -> LabelHead:
        """The head for labels, if the model has one."""

    @property
    def loss_type(self) -> type[TokenLoss]:
        """The class of its loss."""

    @property
    def auto_model(self) -> Any:
        """The AutoModel class that holds the weights."""

    @property
    def task_type(self) -> str | None:
        """Peft's name of the objective; it has none for masked language models."""

    @property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens of a tokenizer that is trained for the objective."""

    @property
    def shift(self) -> int:
        """1: position t predicts token t + 1; 0: logits and labels are aligned."""

    @property
    def streams_answers(self) -> bool:
        """Whether `generate` can show an answer token by token."""

    @property
    def writes(self) -> bool:
        """Whether the model learns to write texts."""

    @property
    def view(self) -> View:
        """How `preview` shows a row."""

    def fitted(self, config: PretrainedConfig, kind: str | None, labels: Sequence[str]) -> Objective:
        """The objective for this model and rows of this kind with these labels. Raises InputError."""

    def names_of(self, targets: np.ndarray) -> list[Any]:
        """The labels, or the number, that a row's class numbers stand for."""

    def answers(self, examples: Examples, found: Ragged) -> list[str]:
        """The answer to each question by what is predicted for its windows."""

    def special_tokens_for(self, data: Data) -> SpecialTokens:
        """The special tokens of a tokenizer that is trained for this data section."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Raise InputError for a tokenizer that cannot serve."""

    def set_languages(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Set the languages of a multilingual tokenizer. Raises UsageError."""

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """Rows -> ids, every row and token in the ledger; `measure`: for evaluation. Raises UsageError, InputError."""

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> Collator:
        """Ids -> padded batches with labels."""

    def misplaced_labels(self, batch: Batch, collator: Any) -> tuple[int, int]:
        """(labels that cannot be those of the inputs, labels examined): shuffled or shifted labels are nearly all wrong."""

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths: a part of every metric's signature."""

    def length_notes(self, data: Data) -> list[str]:
        """What to report about lengths that were not given."""

    def sample(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        rows: Sequence[int],
        collator: Collator,
        settings: GenerationSettings,
    ) -> list[Sample]:
        """What the model writes for these rows."""

    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """What the model makes of each prompt."""

    def describe_row(
        self,
        tokenizer: PreTrainedTokenizerBase,
        shown: np.ndarray,
        labels: np.ndarray,
        best: np.ndarray,
    ) -> RowTexts:
        """A scored row in words: input ids [length], labels, and the best prediction where a label is not IGNORED."""


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (CausalLM(), MaskedLM(), Seq2SeqLM(), Classification())
}
"""Command -> objective."""
