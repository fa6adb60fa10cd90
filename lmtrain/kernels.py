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

QUERIES = 64
"""Treated at once: few enough to leave out most of what they do not see, enough to keep a CPU at its rate."""


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
    """What was dropped is not remembered: backward draws the same again, which takes less time than to keep it."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, threshold: int) -> torch.Tensor:
        ctx.seed, ctx.threshold, ctx.scale = _seed(), threshold, BITS / (BITS - threshold)
        return (states * ctx.scale).mul_(_kept(states, threshold, _chances(ctx.seed)))

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return (outer * ctx.scale).mul_(_kept(outer, ctx.threshold, _chances(ctx.seed))), None


def _seed() -> int:
    """From torch's generator, so that a run goes on as it would have."""
    return int(torch.randint(1 << 62, ()))


def _chances(seed: int) -> np.random.SFC64:
    return np.random.SFC64(seed)


def _kept(states: torch.Tensor, threshold: int, chances: np.random.SFC64) -> torch.Tensor:
    """Shaped and typed as `states`: 1, or at `threshold` of `BITS` places 0. Numbers, for they multiply ten times faster."""
    words = chances.random_raw(-(-states.numel() // 4))
    drawn = torch.from_numpy(words.view(np.int16))[: states.numel()].view(states.shape)
    return torch.ge(drawn, threshold - BITS // 2, out=torch.empty(states.shape, dtype=states.dtype))


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
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    allowed, bias = attention_mask, position_bias
    if attention_mask is None and query.shape[2] > 1:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        allowed = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril() if causal else None
    elif attention_mask is not None and attention_mask.dtype != torch.bool:
        allowed, bias = None, attention_mask if bias is None else bias + attention_mask
    same = [states.to(value.dtype).contiguous() for states in (query, key, value)]
    with torch.autocast("cpu", enabled=False):
        out = _Attention.apply(*same, allowed, bias, round(dropout * BITS))
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """Attention some queries at a time, which is spared the keys that none of them sees: later ones, other documents.

    The gradient is that of FlashAttention (Dao et al. 2022, appendix B.2): what the softmax takes from a query's row is
    the product of the row's output and the gradient there, also with dropout.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor | None,
        bias: torch.Tensor | None, threshold: int,
    ) -> torch.Tensor:  # fmt: skip
        ctx.scale, ctx.threshold, ctx.seed = BITS / (BITS - threshold), threshold, _seed()
        ctx.spans = _spans(query.shape[2], key.shape[2], allowed if bias is None else None)
        chances, saved = _chances(ctx.seed), []
        hidden = None if allowed is None else _hidden(allowed, query)
        out = value.new_empty(*query.shape[:3], value.shape[3])
        for queries, seen in ctx.spans:
            scores = query[:, :, queries] @ key[:, :, seen].transpose(2, 3)
            if bias is not None:
                scores += bias
            if hidden is not None:
                scores += hidden[:, :, queries, seen]
            odds = scores.softmax(-1)
            out[:, :, queries] = _kept(odds, threshold, chances).mul_(odds) @ value[:, :, seen]
            saved.append(odds)
        out *= ctx.scale
        ctx.save_for_backward(query, key, value, bias, out, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value, bias, out, *saved = ctx.saved_tensors
        taken = (outer * out).sum(-1, keepdim=True)
        outer = (outer * ctx.scale).contiguous()
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        of_bias, chances = None, _chances(ctx.seed)
        for (queries, seen), odds in zip(ctx.spans, saved, strict=True):
            kept = _kept(odds, ctx.threshold, chances).mul_(odds)
            of_value[:, :, seen] += kept.transpose(2, 3) @ outer[:, :, queries]
            delta = (outer[:, :, queries] @ value[:, :, seen].transpose(2, 3)).mul_(kept)
            delta.addcmul_(odds, taken[:, :, queries], value=-1)
            of_query[:, :, queries] = delta @ key[:, :, seen]
            of_key[:, :, seen] += delta.transpose(2, 3) @ query[:, :, queries]
            if ctx.needs_input_grad[4]:  # there is one span then, of all
                of_bias = delta.sum_to_size(bias.shape)
        return of_query, of_key, of_value, None, of_bias, None


def _hidden(allowed: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """What to add to scores: nothing, or at what is not to be seen the lowest number. [rows or 1, heads or 1, queries, keys]"""
    hidden = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill_(~allowed, torch.finfo(query.dtype).min)
    return hidden.expand(-1, -1, query.shape[2], -1)


def _spans(queries: int, keys: int, allowed: torch.Tensor | None) -> list[tuple[slice, slice]]:
    """Which queries are treated at once, and from where to where there are keys that any of them sees."""
    everything = [(slice(0, queries), slice(0, keys))]
    if allowed is None or allowed.shape[2] == 1:
        return everything
    spans = []
    for start in range(0, queries, QUERIES):
        some = slice(start, min(start + QUERIES, queries))
        seen = allowed[:, :, some].flatten(0, 2).any(0).nonzero()
        spans.append((some, slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, keys)))
    return everything if all(seen == slice(0, keys) for _, seen in spans) else spans
