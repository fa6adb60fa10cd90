"""Scaled dot-product attention on a CPU: with dropout in blocks of queries, packed documents each by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

from lmtrain.modeling.cpu_documents import find_documents
from lmtrain.modeling.cpu_dropout import LEVELS, Note, draw_seed, generator, keep_mask, scale_of, threshold_of

BLOCK = 64
"""Queries per block: few enough to skip most of the keys that they do not see, enough to keep a CPU busy."""

KNOWN = {"dropout", "scaling", "is_causal", "position_bias"}
"""Arguments of transformers' attention functions that change the result and that `attention` understands."""

WITHOUT_EFFECT = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "deterministic",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "seq_idx",
    "sliding_window",
    "use_cache",
}
"""Arguments that SDPA ignores because the mask already holds them, or because they are meant for other kernels."""

Attention = Callable[..., tuple[torch.Tensor, None]]


def attention(
    original: Attention,
    note: Note,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """[rows, queries, heads, width] from query, key and value [rows, heads, length, width], as transformers' "sdpa".

    `original` is called on other devices, and for arguments, masks and shapes that this function does not know.
    """
    fallback = _Fallback(original, module, options)
    if query.device.type != "cpu":
        return fallback(query, key, value, attention_mask)
    packed = attention_mask is not None and options.get("position_bias") is None and attention_mask.dim() == 4
    documents = find_documents(attention_mask) if packed else None
    if documents is None and not options.get("dropout"):
        return fallback(query, key, value, attention_mask)
    if reason := _unknown(query, key, attention_mask, options):
        note(f"attention with {reason} is computed by transformers' own function")
        return fallback(query, key, value, attention_mask)
    if documents is None or len(query) != documents.rows:
        return _all_rows(fallback, query, key, value, attention_mask)
    parts = [documents.queries.unpack(query), documents.keys.unpack(key), documents.keys.unpack(value)]
    out, _ = _all_rows(fallback, parts[0], parts[1], parts[2], documents.mask)
    return documents.queries.pack(out).view(len(query), -1, *out.shape[2:]), None


@dataclass(frozen=True)
class _Fallback:
    """The attention function that was replaced, with the arguments of this call."""

    original: Attention
    module: nn.Module
    options: dict[str, Any]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, None]:
        return self.original(self.module, query, key, value, attention_mask=mask, **self.options)


def _unknown(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, options: dict[str, Any]) -> str | None:
    """What of a call `_all_rows` does not know, in words."""
    given = {name for name, option in options.items() if option is not None and option is not False}
    if names := sorted(given - KNOWN - WITHOUT_EFFECT):
        return f"the argument {names[0]}"
    if threshold_of(options.get("dropout", 0.0)) >= LEVELS:
        return f"a dropout of {options['dropout']:g}"
    if any(tensor is not None and tensor.dim() != 4 for tensor in (mask, options.get("position_bias"))):
        return "a mask that does not have four dimensions"
    if len(query) != len(key) or query.shape[1] % key.shape[1]:
        return "queries and keys of different shapes"
    return None


def _all_rows(
    fallback: _Fallback, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, None]:
    """All rows at once: with dropout in blocks, without it by torch's fused kernel."""
    options, dropout = fallback.options, fallback.options.get("dropout")
    if not dropout:
        return fallback(query, key, value, mask)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = options.get("scaling")
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    allowed, bias = mask, options.get("position_bias")
    if mask is None and query.shape[2] > 1:
        is_causal = options.get("is_causal")
        causal = getattr(fallback.module, "is_causal", True) if is_causal is None else is_causal
        allowed = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril() if causal else None
    elif mask is not None and mask.dtype != torch.bool:
        allowed, bias = None, mask if bias is None else bias + mask
    if bias is not None:
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    same = [states.to(value.dtype).contiguous() for states in (query, key, value)]
    with torch.autocast("cpu", enabled=False):
        out = _attend(*same, allowed, bias, threshold_of(dropout))
    return out.transpose(1, 2).contiguous(), None


# --- attention with dropout ------------------------------------------------------------------------------------------
class _Attention(torch.autograd.Function):
    """Attention of a block of queries at a time, without the keys that no query of the block attends to.

    The gradient is that of FlashAttention (Dao et al. 2022, appendix B.2): the softmax subtracts from each row of scores
    the product of the row's output and its gradient, with dropout as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        allowed: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: int,
    ) -> torch.Tensor:
        ctx.scale, ctx.threshold, ctx.seed = scale_of(threshold), threshold, draw_seed()
        ctx.blocks = _blocks(query.shape[2], key.shape[2], allowed)
        bits, saved = generator(ctx.seed), []
        hidden = None if allowed is None else _additive(allowed, query)
        out = value.new_empty(*query.shape[:3], value.shape[3])
        for queries, keys in ctx.blocks:
            scores = query[:, :, queries] @ key[:, :, keys].transpose(2, 3)
            if bias is not None:
                scores += bias[:, :, queries, keys]
            if hidden is not None:
                scores += hidden[:, :, queries, keys]
            weights = scores.softmax(-1)
            out[:, :, queries] = keep_mask(weights, threshold, bits).mul_(weights) @ value[:, :, keys]
            saved.append(weights)
        out *= ctx.scale
        ctx.save_for_backward(query, key, value, bias, out, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, bias, out, *saved = ctx.saved_tensors
        product = (outer * out).sum(-1, keepdim=True)
        outer = (outer * ctx.scale).contiguous()
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        bits = generator(ctx.seed)
        for (queries, keys), weights in zip(ctx.blocks, saved, strict=True):
            kept = keep_mask(weights, ctx.threshold, bits).mul_(weights)
            of_value[:, :, keys] += kept.transpose(2, 3) @ outer[:, :, queries]
            delta = (outer[:, :, queries] @ value[:, :, keys].transpose(2, 3)).mul_(kept)
            delta.addcmul_(weights, product[:, :, queries], value=-1)
            of_query[:, :, queries] = delta @ key[:, :, keys]
            of_key[:, :, keys] += delta.transpose(2, 3) @ query[:, :, queries]
            if of_bias is not None:
                of_bias[:, :, queries, keys] += delta.sum_to_size(*bias.shape[:2], *delta.shape[2:])
        return of_query, of_key, of_value, None, of_bias, None


_attend: Callable[..., torch.Tensor] = _Attention.apply


def _additive(allowed: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """[rows or 1, heads or 1, queries, keys] to add to scores: 0, or the lowest number where a query must not attend."""
    hidden = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill_(~allowed, torch.finfo(query.dtype).min)
    return hidden.expand(-1, -1, query.shape[2], -1)


def _blocks(queries: int, keys: int, allowed: torch.Tensor | None) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the range of keys that any of its queries attends to."""
    everything = [(slice(0, queries), slice(0, keys))]
    if allowed is None or allowed.shape[2] == 1:
        return everything
    blocks = []
    for start in range(0, queries, BLOCK):
        some = slice(start, min(start + BLOCK, queries))
        seen = allowed[:, :, some].flatten(0, 2).any(0).nonzero()
        blocks.append((some, slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, keys)))
    return everything if all(seen == slice(0, keys) for _, seen in blocks) else blocks
