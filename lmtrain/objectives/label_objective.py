"""What the objectives share that put a head on an encoder: `classify`, whatever its rows are."""

from dataclasses import dataclass
from typing import Any

import transformers

from lmtrain.config.heads import HEADS
from lmtrain.modeling.classifier_head import LabelHead
from lmtrain.modeling.label_loss import LOSSES
from lmtrain.modeling.loss import TokenLoss
from lmtrain.objectives.defaults import Defaults
from lmtrain.objectives.mlm import MaskedLM


@dataclass(frozen=True)
class LabelObjective(Defaults):
    """An objective whose model has the head of its kind of rows."""

    labels: tuple[str, ...] = ()
    kind: str = "labelled"
    """The kind of the rows, a key of HEADS."""

    name = "classify"
    special_tokens = MaskedLM.special_tokens
    shift = 0
    writes = False

    @property
    def head(self) -> LabelHead:
        return LabelHead(self.kind, self.labels)

    @property
    def loss_type(self) -> type[TokenLoss]:
        return LOSSES.get(self.kind, TokenLoss)

    @property
    def auto_model(self) -> Any:
        return getattr(transformers, HEADS[self.kind].auto_class)  # when it is needed: it imports all models

    @property
    def task_type(self) -> str | None:
        return HEADS[self.kind].task_type
