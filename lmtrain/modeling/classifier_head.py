"""The head of a classifier: its labels, and its weights where the labels are others than before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def labels_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The labels of a configuration in the order of their class numbers; every configuration has some."""
    names = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    return tuple(names[number] for number in sorted(names))


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> bool:
    """Give the configuration these labels, and say whether it had others; without any it stays as it is."""
    before = labels_of(config)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.problem_type = None
    return before != tuple(labels or before)


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
