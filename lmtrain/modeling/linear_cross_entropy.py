"""The cross entropy of a linear head without the logits of a batch: a few rows at a time, gradients formed on the way.

The logits of a batch are often its largest tensor by far, and most of the time of a small model goes into writing and
reading them. Here those of some rows are made in one buffer, turned into their own gradient in place, and projected back
at once; so nothing is left to do in the backward pass, and never more than the buffer is held.
"""

from typing import Any

import torch

CELLS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits that are held at once; a CPU keeps less in its caches than a GPU needs to be busy."""

FEWEST = 512
"""Rows that are worth a pass over the weights."""

WIDTH = 512
"""Entries of the vocabulary that a CPU projects to at once: MKL takes a third longer for a wide product than for its parts."""


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    return max(CELLS.get(device.type, 1 << 25) // vocabulary // 64 * 64, FEWEST)


def cross_entropy(
    states: torch.Tensor, head: Any, labels: torch.Tensor, scale: torch.Tensor, smoothing: float = 0.0,
    more_bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """`scale` times the sum of the cross entropy of `head`'s logits.

    `states` [rows, width]; `labels` [rows], all of them to be predicted; `head` a linear layer, behind which `more_bias`
    [vocabulary] may be added. Under autocast the products are computed in its type, everything else in float32.
    """
    bias = head.bias
    if more_bias is not None:
        bias = more_bias if bias is None else bias + more_bias
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        return _CrossEntropy.apply(states, head.weight, bias, labels, scale, smoothing, dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor,
        scale: torch.Tensor, smoothing: float, dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        wanted = ctx.needs_input_grad[:3]
        narrow = weight.to(dtype)
        rows, vocabulary = rows_at_once(len(weight), weight.device), len(weight)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        buffer = torch.empty(min(rows, len(states)), vocabulary, dtype=dtype, device=states.device)
        # What the first rows come to is written over whatever is there: a pass less over the weights.
        unwritten = torch.empty_like if len(states) and dtype == torch.float32 else torch.zeros_like
        grads = (
            torch.empty_like(states) if wanted[0] else None,
            unwritten(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None,
        )
        for start in range(0, len(states), rows):
            some, truth = states[start : start + rows].to(dtype), labels[start : start + rows]
            logits = _project(some, narrow, buffer[: len(some)])
            odds = (logits if bias is None else logits + bias).log_softmax(1, dtype=torch.float32)
            at_truth = odds.gather(1, truth[:, None])[:, 0]
            mean = odds.mean(1) if smoothing else at_truth
            total -= ((1 - smoothing) * at_truth + smoothing * mean).sum()
            if not any(wanted):
                continue
            # The derivative by the logits, but for `scale`: what the model says less what it should say.
            delta = odds.exp_()
            if smoothing:
                delta -= smoothing / vocabulary
            delta[torch.arange(len(truth), device=truth.device), truth] -= 1 - smoothing
            _add(grads, start, some, delta, narrow, scale)
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.present = [grad is not None for grad in grads]
        ctx.dtypes = [states.dtype, weight.dtype, bias.dtype if bias is not None else None]
        return total * scale

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) if present else None for present in ctx.present]
        # Nearly always 1; to look at it costs a wait on a GPU and saves a pass over the weights on a CPU.
        if outer.device.type != "cpu" or outer != 1:
            grads = [None if grad is None else grad * outer for grad in grads]
        cast = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return (*cast, None, None, None, None)


def _project(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """[rows, vocabulary], written into `out`."""
    width = WIDTH if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), width):
        torch.mm(states, weight[start : start + width].T, out=out[:, start : start + width])
    return out


def _add(
    grads: tuple[torch.Tensor | None, ...], start: int, states: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor,
    scale: torch.Tensor,
) -> None:  # fmt: skip
    """Enter what some rows come to, whose gradient by the logits is `scale` times `delta`: many fewer are scaled so."""
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
