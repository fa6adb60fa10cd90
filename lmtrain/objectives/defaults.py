"""What an objective does unless its own file says otherwise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lmtrain.config.data import Data
from lmtrain.modeling.classifier_head import NO_HEAD, LabelHead
from lmtrain.modeling.loss import TokenLoss
from lmtrain.objectives.samples import RowTexts, describe_row
from lmtrain.preprocessing.batch import IGNORED, Batch
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.train_tokenizer import SpecialTokens


class Defaults:
    """The parts of the protocol `Objective` that need no code in most objectives."""

    special_tokens: SpecialTokens
    labels: tuple[str, ...] = ()
    streams_answers = False
    writes = True

    @property
    def head(self) -> LabelHead:
        return NO_HEAD

    @property
    def loss_type(self) -> type[TokenLoss]:
        return TokenLoss

    def fitted(self, config: PretrainedConfig, kind: str | None, labels: Sequence[str]) -> Any:
        """As it is: a language model has no labels."""
        return self

    def names_of(self, targets: np.ndarray) -> list[Any]:
        """None: a language model has no labels."""
        return []

    def answers(self, examples: Examples, found: Ragged) -> list[str]:
        """None: there are no questions."""
        return []

    def special_tokens_for(self, data: Data) -> SpecialTokens:
        """The same for all data."""
        return self.special_tokens

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Do nothing: every tokenizer can be used."""

    def set_languages(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Do nothing: the objective has no languages."""

    def misplaced_labels(self, batch: Batch, collator: Any) -> tuple[int, int]:
        """Nothing can be said: any text may be the target of another one."""
        return 0, 0

    def length_notes(self, data: Data) -> list[str]:
        """No notes."""
        return []

    def describe_row(
        self,
        tokenizer: PreTrainedTokenizerBase,
        shown: np.ndarray,
        labels: np.ndarray,
        best: np.ndarray,
    ) -> RowTexts:
        """The row, its predictions under teacher forcing, and the scored tokens."""
        predicted, truth, scored = filled(shown, labels, best)
        return describe_row(tokenizer, shown, predicted, truth, scored)


def filled(shown: np.ndarray, labels: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the ids with predictions where labels are, with the labels there, whether there is one), all [length]."""
    scored = labels != IGNORED
    predicted, truth = shown.copy(), np.where(scored, labels, shown)
    predicted[scored] = best
    return predicted, truth, scored
