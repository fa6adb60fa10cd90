"""The same functions of a model, in less time: dropout on a CPU, and GPT-2's approximation of GELU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BITS = 1 << 16
"""Chances are whole numbers of so many parts: a tenth is 6554 of them, and what is left is scaled by just that."""


def fuse(network: PreTrainedModel) -> None:
    """Let torch's own kernel compute `gelu_new`, which it calls the approximation by tanh: one pass rather than eight."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def quick_dropout() -> Iterator[None]:
    """While this is open, dropout on a CPU takes its chances 16 bits at a time, also that of attention.

    torch draws a number of 32 bits or more for each element, one after another, which is a fifth of the time of a small
    model's step, and more where attention drops out as well.
    """
    F.dropout = _dropout
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    try:
        yield
    finally:
        F.dropout = TORCH_DROPOUT
        ALL_ATTENTION_FUNCTIONS["sdpa"] = TORCH_ATTENTION


TORCH_DROPOUT, TORCH_ATTENTION = F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"]


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or not 0 < p < 1 or input.device.type != "cpu":
        return TORCH_DROPOUT(input, p, training, inplace)
    return _Dropout.apply(input, round(p * BITS))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, threshold: int) -> torch.Tensor:
        dropped = _drawn(states.numel()).view(states.shape) < threshold - BITS // 2
        ctx.save_for_backward(dropped)
        ctx.scale = BITS / (BITS - threshold)
        return (states * ctx.scale).masked_fill_(dropped, 0.0)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (dropped,) = ctx.saved_tensors
        return (outer * ctx.scale).masked_fill_(dropped, 0.0), None


def _drawn(count: int) -> torch.Tensor:
    """[count] int16, every value as likely: a function of torch's generator, so that a run goes on as it would have."""
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
    words = generator.integers(0, 1 << 64, size=-(-count // 4), dtype=np.uint64)
    return torch.from_numpy(words.view(np.int16))[:count]


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    is_causal: bool | None = None, position_bias: torch.Tensor | None = None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Scaled dot-product attention [rows, heads, length, width] with dropout; without it torch's fused kernel."""
    if not dropout or query.device.type != "cpu":
        return TORCH_ATTENTION(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **more
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if position_bias is not None:
        scores = scores + position_bias
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = _dropout(scores.softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None
