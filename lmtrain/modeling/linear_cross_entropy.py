"""The cross entropy of a linear head, computed for a few rows at a time, without the logits of a whole batch.

Logits are often the largest tensor of a step by far, and a small model spends most of its time on writing and reading them.
Here the logits of some rows share one buffer: the forward pass turns them into their gradient in place and projects that
back at once. The backward pass has nothing left to compute, and no more than the buffer is ever held.
"""

from collections.abc import Callable
from typing import Any

import torch

CELLS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits in the buffer, by device type: few enough for the caches of a CPU, enough to keep a GPU busy."""

FEWEST = 512
"""Rows that are worth one pass over the weights."""

WIDTH = 512
"""Columns per matrix product on a CPU: MKL takes a third longer for one wide product than for its parts."""


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    return max(CELLS.get(device.type, 1 << 25) // vocabulary // 64 * 64, FEWEST)


def cross_entropy(
    states: torch.Tensor,
    head: Any,
    labels: torch.Tensor,
    scale: torch.Tensor,
    smoothing: float = 0.0,
    more_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`scale` times the sum of the cross entropy between the logits of `head` and `labels`.

    `states` is [rows, width]; `labels` is [rows], without ignored ones; `head` is a linear layer, after which `more_bias`
    [vocabulary] is added. Under autocast, matrix products use its type, everything else float32.
    """
    bias = head.bias
    if more_bias is not None:
        bias = more_bias if bias is None else bias + more_bias
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        return _cross_entropy(states, head.weight, bias, labels, scale, smoothing, dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        scale: torch.Tensor,
        smoothing: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[:3]
        narrow = weight.to(dtype)
        rows, vocabulary = rows_at_once(len(weight), weight.device), len(weight)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        buffer = torch.empty(min(rows, len(states)), vocabulary, dtype=dtype, device=states.device)
        # The first rows overwrite the gradient instead of adding to zeros: one pass less over the weights.
        unwritten = torch.empty_like if len(states) and dtype == torch.float32 else torch.zeros_like
        grads = (
            torch.empty_like(states) if wanted[0] else None,
            unwritten(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None,
        )
        for start in range(0, len(states), rows):
            some, targets = states[start : start + rows].to(dtype), labels[start : start + rows]
            logits = _project(some, narrow, buffer[: len(some)])
            log_probs = (logits if bias is None else logits + bias).log_softmax(1, dtype=torch.float32)
            of_targets = log_probs.gather(1, targets[:, None])[:, 0]
            mean = log_probs.mean(1) if smoothing else of_targets
            total -= ((1 - smoothing) * of_targets + smoothing * mean).sum()
            if not any(wanted):
                continue
            # The gradient by the logits, without `scale`: predicted minus target probabilities.
            delta = log_probs.exp_()
            if smoothing:
                delta -= smoothing / vocabulary
            delta[torch.arange(len(targets), device=targets.device), targets] -= 1 - smoothing
            _accumulate(grads, start, some, delta, narrow, scale)
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.present = [grad is not None for grad in grads]
        ctx.dtypes = [states.dtype, weight.dtype, bias.dtype if bias is not None else None]
        return total * scale

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) if present else None for present in ctx.present]
        # It is nearly always 1. The comparison saves a pass over the weights on a CPU, but would make a GPU wait.
        if outer.device.type != "cpu" or outer != 1:
            grads = [None if grad is None else grad * outer for grad in grads]
        cast = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return (*cast, None, None, None, None)


_cross_entropy: Callable[..., torch.Tensor] = _CrossEntropy.apply


def _project(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Logits [rows, vocabulary], written into `out`."""
    width = WIDTH if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), width):
        torch.mm(states, weight[start : start + width].T, out=out[:, start : start + width])
    return out


def _accumulate(
    grads: tuple[torch.Tensor | None, ...],
    start: int,
    states: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    """Add to `grads` the gradients of the rows from `start` on, whose gradient by the logits is `scale` times `delta`.

    The products are scaled rather than `delta`, which has many more elements.
    """
    of_states, of_weight, of_bias = grads
    if of_bias is not None:
        of_bias += delta.sum(0) * scale
    narrow = delta.to(weight.dtype)
    if of_states is not None:
        of_states[start : start + len(states)] = (narrow @ weight).mul_(scale)
    if of_weight is not None and narrow.dtype == of_weight.dtype:
        of_weight.addmm_(narrow.T, states * scale, beta=int(start > 0))
    elif of_weight is not None:
        of_weight += (narrow.T @ states) * scale
