"""How much memory a forward pass leaves behind for its backward pass, found without weights and without computing.

The network lies on the meta device, where tensors have shapes and no content. Autograd says which tensors it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmtrain.modeling.cpu_attention import BLOCK
from lmtrain.modeling.output_head import replaced_head


def saved_bytes(network: PreTrainedModel, rows: int, length: int, targets: int, kernels: bool) -> int:
    """Bytes that autograd holds at the end of the forward pass of a batch, weights not counted.

    `network` is on the meta device; `rows` × `length` tokens, for an encoder-decoder with `targets` tokens in each target.
    `kernels`: with the CPU kernels of dropout and attention, which save less. The output head is left out.
    """
    weights = {_storage(parameter) for parameter in [*network.parameters(), *network.buffers()]}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, torch.Tensor) and _storage(tensor) not in weights:
            storage = tensor.untyped_storage()
            held[_storage(tensor)] = storage  # kept, so that no other one takes its place
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(rows, targets, dtype=torch.long, device="meta")
    else:
        inputs["use_cache"] = False
    head = network.get_output_embeddings()
    network.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, _kernels_on_meta(kernels), _WithoutContent():
        if isinstance(head, nn.Module):
            with replaced_head(network, head, lambda states: states[..., :1]):
                network(**inputs)
        else:
            network(**inputs)
    return sum(storage.nbytes() for storage in held.values())


class _WithoutContent(TorchDispatchMode):
    """Answers a question on the content of a meta tensor with 1 or True: masks of transformers ask whether all is attended."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return (arguments[0].dtype.is_floating_point and 1.0) or 1
        return function(*arguments, **(options or {}))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _kernels_on_meta(kernels: bool) -> Iterator[None]:
    """While open, dropout and attention save what their kernels do: on the meta device torch takes other ones."""
    dropout, sdpa = F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"]
    if kernels:
        F.dropout = _dropout
    ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(_attention, kernels)
    try:
        yield
    finally:
        F.dropout = dropout
        ALL_ATTENTION_FUNCTIONS.pop("sdpa")
        if ALL_ATTENTION_FUNCTIONS.get("sdpa") is not sdpa:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return _Scaled.apply(input) if training and p > 0 else input


class _Scaled(torch.autograd.Function):
    """A result of its own that saves nothing, as cpu_dropout.py."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor) -> torch.Tensor:
        return states * 1.0

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> torch.Tensor:
        return outer


def _attention(
    kernels: bool,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The output [rows, length, heads, width] of a fused kernel, which saves its inputs, its output and a sum per row.

    The CPU kernel with dropout (cpu_attention.py) copies its inputs and keeps the weights of the keys that are seen.
    """
    if not (kernels and options.get("dropout")):
        return _Fused.apply(query, key, value, 1), None
    groups, queries, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    causal = bool(getattr(module, "is_causal", False)) and queries == keys > 1
    ends = range(BLOCK, queries + BLOCK, BLOCK)
    seen = sum(min(end, keys) * BLOCK for end in ends) if causal else queries * keys
    copies = (query * 1.0, key.repeat_interleave(groups, 1) * 1.0, value.repeat_interleave(groups, 1) * 1.0)
    return _Fused.apply(*copies, seen) * 1.0, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: int) -> torch.Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        of_each = query.shape[:-1] if seen == 1 else (*query.shape[:2], seen)
        ctx.save_for_backward(query, key, value, out, query.new_empty(of_each, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.saved_tensors[:3], None)
