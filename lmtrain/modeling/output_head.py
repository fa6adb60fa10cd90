"""The output head of a model: run the model without it, or with a function in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LATER_BIAS = "final_logits_bias"
"""What BART and models derived from it add to the logits after the head."""


def later_bias(model: PreTrainedModel) -> torch.Tensor | None:
    """[vocabulary], the bias that is added after the head; None where there is none."""
    bias: torch.Tensor | None = getattr(model, LATER_BIAS, None)
    return None if bias is None else bias[0]


@contextmanager
def replaced_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While open, each module runs the function given for it."""
    # A device map may have put a forward of its own on the instance.
    held = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, before in held.items():
            del module.forward  # what the class defines
            if before is not None:
                module.forward = before


@contextmanager
def replaced_head(
    model: PreTrainedModel, head: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """While open, `function` takes the states [rows, length, width] in place of `head`, and no bias is added after it."""
    bias = getattr(model, LATER_BIAS, None)
    if bias is not None:
        setattr(model, LATER_BIAS, bias.new_zeros(1, 1))
    try:
        with replaced_forward({head: function}):
            yield
    finally:
        if bias is not None:
            setattr(model, LATER_BIAS, bias)


def without_head(model: PreTrainedModel, head: nn.Module | None) -> AbstractContextManager[None]:
    """While open, `head` returns the states that it is given; with None nothing changes."""
    return replaced_head(model, head, lambda states: states) if head else nullcontext()
