"""The head of a classifier: its labels, and its weights where the labels are others than before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PretrainedConfig

from lmtrain.config.heads import HEADS, kind_of
from lmtrain.data.labels import ANSWER_LABELS, NO_ANSWER, NUMBER_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAY_ABSTAIN = "may_abstain"
"""In the configuration of a question answerer: whether it learnt from questions that have no answer."""


def labels_of(config: PretrainedConfig, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The labels of a model in the order of their class numbers; `classes` as in `head_of`. Every configuration has some."""
    kind = head_of(config, classes)
    if kind == "number":
        return (NUMBER_LABEL,)
    if kind == "question":
        return (*ANSWER_LABELS, *([NO_ANSWER] if getattr(config, MAY_ABSTAIN, False) else []))
    return _names(config)


def head_of(config: PretrainedConfig, classes: Sequence[str] | None = None) -> str | None:
    """The kind of rows that the head of a model learns from; None of a model without such a head.

    `classes` are those of the model, else those that it was saved with. Without a problem, transformers takes a single output
    for a number.
    """
    problem: str | None = config.problem_type or ("regression" if len(config.id2label or {}) == 1 else None)
    return kind_of(classes or config.architectures, problem)


@dataclass(frozen=True)
class LabelHead:
    """What a head is for."""

    kind: str | None = None
    """The kind of the rows; None: there is no head for labels."""
    labels: tuple[str, ...] = ()


NO_HEAD = LabelHead()


def set_head(config: PretrainedConfig, head: LabelHead) -> bool:
    """Give the configuration this head, and say whether it had another; without labels it stays as it is."""
    kind, labels = head.kind, head.labels
    if not labels or kind is None:
        return False
    if kind == "question":
        setattr(config, MAY_ABSTAIN, NO_ANSWER in labels)
        config.num_labels = len(ANSWER_LABELS)  # a score for each end of an answer
        return False
    before = _names(config)
    config.problem_type = cast(Any, HEADS[kind].problem_type)
    if kind == "number":
        config.num_labels = 1
        return len(before) != 1
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return before != labels


def _names(config: PretrainedConfig) -> tuple[str, ...]:
    names = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    return tuple(names[number] for number in sorted(names))


@torch.no_grad()
def renew_head(network: PreTrainedModel) -> str:
    """Draw the head of a classifier anew, as its configuration says; the names of its parts."""
    heads = [name for name, _ in network.named_children() if name != network.base_model_prefix]
    for module in (inner for name in heads for inner in network.get_submodule(name).modules()):
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0.0, getattr(network.config, "initializer_range", 0.02))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, torch.nn.LayerNorm):
            module.reset_parameters()
    return ", ".join(heads)
