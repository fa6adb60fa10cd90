"""Whether a step may leave a parameter without a gradient.

DistributedDataParallel waits for every parameter's gradient, unless it searches for unused parameters in each step,
which costs time and memory. So it searches only where a model needs that.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from lmtrain.modeling.loss import TokenLoss
from lmtrain.preprocessing.batch import IGNORED, Batch

BY_CHANCE = re.compile(r"(\w+_)?layerdrop|num(_local)?_experts|n_routed_experts")
"""Settings of models that skip layers by chance, or pick experts by token: a step may use what another did not."""


def may_leave_unused(network: PreTrainedModel, loss: TokenLoss, batch: Batch) -> bool:
    """Whether a step may leave a parameter unused, by the model's settings and by the graph of one step on `batch`.

    Nothing is computed backwards, and the random state stays as it was.
    """
    if any(BY_CHANCE.fullmatch(name) for name, value in _settings(network.config.to_dict()) if value):
        return True
    was_training = network.training
    with torch.random.fork_rng():
        total = loss(network.train(), batch, (batch["labels"] != IGNORED).sum())
    network.train(was_training)
    used = {id(parameter) for parameter in _leaves(total)}
    return any(parameter.requires_grad and id(parameter) not in used for parameter in network.parameters())


def _settings(document: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a configuration and of those inside it."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield str(name), value


def _leaves(result: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a result gives a gradient."""
    seen, open_nodes = set(), [result.grad_fn]
    while open_nodes:
        node: Any = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        open_nodes += [following for following, _ in node.next_functions]
