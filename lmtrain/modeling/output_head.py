"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def later_bias(model: Any) -> torch.Tensor | None:
    """[vocabulary], what BART and its kin add to the logits behind the head."""
    bias = getattr(model, LATER_BIAS, None)
    return None if bias is None else bias[0]


LATER_BIAS = "final_logits_bias"


def without_head(model: Any, head: torch.nn.Module | None) -> AbstractContextManager[None]:
    """While the model runs, its `head` hands on what it is given, and no bias is added behind it."""
    return replaced_head(model, head, lambda states: states) if head else nullcontext()


@contextmanager
def replaced_head(model: Any, head: torch.nn.Module, made: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While the model runs, `made` takes the states in the place of its `head`, and no bias is added behind it."""
    bias = getattr(model, LATER_BIAS, None)
    head.forward = made
    if bias is not None:
        setattr(model, LATER_BIAS, bias.new_zeros(1, 1))
    try:
        yield
    finally:
        del head.forward  # what the class says
        if bias is not None:
            setattr(model, LATER_BIAS, bias)
