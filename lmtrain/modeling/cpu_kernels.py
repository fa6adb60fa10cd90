"""The same functions of a model, in less time: dropout on a CPU, and GPT-2's approximation of GELU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
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

SPARSE = 0.25
"""Of all pairs of query and key the share up to which it pays to treat texts that share rows each by itself."""


def fuse_gelu(network: PreTrainedModel) -> None:
    """Let torch's own kernel compute `gelu_new`, which it calls the approximation by tanh: one pass rather than eight."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def fast_dropout() -> Iterator[None]:
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
    """Scaled dot-product attention [rows, heads, length, width], of texts that share rows each by itself."""
    told: Any = (dropout, scaling, is_causal, position_bias)
    if query.device.type != "cpu":
        return TORCH_ATTENTION(module, query, key, value, attention_mask, *told, **more)
    texts = None if attention_mask is None or position_bias is not None else _texts(attention_mask)
    if texts is None or (len(query), len(key)) != (texts.rows, texts.rows):
        return _together(module, query, key, value, attention_mask, *told, **more)
    apart = [texts.asking.apart(query), texts.asked.apart(key), texts.asked.apart(value)]
    out, _ = _together(module, *apart, texts.mask, *told, **more)
    return texts.asking.together(out).view(len(query), -1, *out.shape[2:]), None


def _together(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float, scaling: float | None, is_causal: bool | None,
    position_bias: torch.Tensor | None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Every row at once: with dropout by blocks, without it by torch's fused kernel."""
    if not dropout:
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
    if bias is not None:
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    same = [states.to(value.dtype).contiguous() for states in (query, key, value)]
    with torch.autocast("cpu", enabled=False):
        out = _Attention.apply(*same, allowed, bias, round(dropout * BITS))
    return out.transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class _Side:
    """Where the tokens of texts are, in rows that they share and in a padded row for each."""

    shape: tuple[int, int]
    """[texts, longest]"""
    there: torch.Tensor
    """[texts * longest] of each place its token's number in the rows; of padding that of another token of the text."""
    back: torch.Tensor
    """[rows * length] of each token its place."""
    filled: torch.Tensor
    """[texts * longest, 1, 1] whether there is a token of its own, as a number."""

    @classmethod
    def of(cls, starts: torch.Tensor, lengths: torch.Tensor, tokens: int) -> "_Side":
        """`starts` and `lengths` [texts] of texts that lie one after another among `tokens`."""
        whole = bool(lengths.sum() == tokens)
        within = torch.arange(int(lengths.max()) + (not whole))
        filled = within < lengths[:, None]
        there = torch.minimum(starts[:, None] + within, (starts + lengths - 1)[:, None]).flatten()
        filled = filled.flatten()
        # A token of no text has the gradient of padding: that at the end of the first one is of no token.
        back = torch.full((tokens,), len(within) - 1)
        back[there[filled]] = filled.nonzero()[:, 0]
        return cls((len(starts), len(within)), there, back, filled[:, None, None].float())

    def apart(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, heads, length, width] -> [texts, heads, longest, width]"""
        tokens = states.transpose(1, 2).flatten(0, 1)
        return _Moved.apply(tokens, self.there, self.back, None).view(*self.shape, *tokens.shape[1:]).transpose(1, 2)

    def together(self, states: torch.Tensor) -> torch.Tensor:
        """[texts, longest, heads, width] -> [rows * length, heads, width]"""
        return _Moved.apply(states.flatten(0, 1), self.back, self.there, self.filled)


@dataclass(frozen=True)
class _Texts:
    """Texts that share rows, each of which attends to one stretch of tokens that no other attends to."""

    rows: int
    asking: _Side
    asked: _Side
    mask: torch.Tensor
    """[texts, 1, longest, longest] true where a token of the text sees one of its stretch."""


@lru_cache(maxsize=4)
def _texts(mask: torch.Tensor) -> _Texts | None:
    """What `mask` [rows, 1, queries, keys] says of texts; None where it is no such mask, or they are hardly worth it.

    Kept, because a model asks in each of its layers with the same one.
    """
    if mask.dtype != torch.bool or mask.shape[1] != 1 or mask.shape[2] == 1:
        return None
    rows, _, queries, keys = mask.shape
    seen = mask[:, 0].to(torch.uint8)
    first, last = seen.argmax(2), keys - 1 - seen.flip(2).argmax(2)
    new = torch.ones_like(first, dtype=torch.bool)
    new[:, 1:] = first[:, 1:] != first[:, :-1]
    new = new.flatten()
    starts, text = new.nonzero()[:, 0], new.cumsum(0) - 1
    ends = torch.zeros_like(starts).scatter_reduce(
        0, text, (last + keys * torch.arange(rows)[:, None]).flatten(), "amax"
    )
    key_starts = first.flatten()[starts] + keys * (starts // queries)
    lengths, key_lengths = torch.diff(starts, append=torch.tensor([rows * queries])), ends - key_starts + 1
    work = len(starts) * int(lengths.max()) * int(key_lengths.max())
    if work > SPARSE * mask.numel() or (key_starts[1:] <= ends[:-1]).any():
        return None
    asking, asked = _Side.of(starts, lengths, rows * queries), _Side.of(key_starts, key_lengths, rows * keys)
    at, of = asking.there.view(asking.shape)[:, :, None], asked.there.view(asked.shape)[:, None, :]
    inside = mask[at // queries, 0, at % queries, of % keys] & (asked.filled.view(asked.shape)[:, None, :] > 0)
    return _Texts(rows, asking, asked, inside[:, None])


class _Moved(torch.autograd.Function):
    """Rows moved elsewhere, and their gradient back; padding has none."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, there: torch.Tensor, back: torch.Tensor, filled: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.back, ctx.filled = back, filled
        return states.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        moved = outer.index_select(0, ctx.back)
        return moved if ctx.filled is None else moved.mul_(ctx.filled.to(moved.dtype)), None, None, None


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
        ctx.spans = _spans(query.shape[2], key.shape[2], allowed)
        chances, saved = _chances(ctx.seed), []
        hidden = None if allowed is None else _hidden(allowed, query)
        out = value.new_empty(*query.shape[:3], value.shape[3])
        for queries, seen in ctx.spans:
            scores = query[:, :, queries] @ key[:, :, seen].transpose(2, 3)
            if bias is not None:
                scores += bias[:, :, queries, seen]
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
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        chances = _chances(ctx.seed)
        for (queries, seen), odds in zip(ctx.spans, saved, strict=True):
            kept = _kept(odds, ctx.threshold, chances).mul_(odds)
            of_value[:, :, seen] += kept.transpose(2, 3) @ outer[:, :, queries]
            delta = (outer[:, :, queries] @ value[:, :, seen].transpose(2, 3)).mul_(kept)
            delta.addcmul_(odds, taken[:, :, queries], value=-1)
            of_query[:, :, queries] = delta @ key[:, :, seen]
            of_key[:, :, seen] += delta.transpose(2, 3) @ query[:, :, queries]
            if of_bias is not None:
                of_bias[:, :, queries, seen] += delta.sum_to_size(*bias.shape[:2], *delta.shape[2:])
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
