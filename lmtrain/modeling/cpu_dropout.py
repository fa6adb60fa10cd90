"""Dropout on a CPU with 16 random bits per element.

torch draws at least 32 bits for each element, one element after another. That takes a fifth of the step time of a small
model, and more where attention has dropout as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LEVELS = 1 << 16
"""Dropout rates are rounded to multiples of 1 / LEVELS: 0.1 becomes 6554 / 65536. The scale follows the rounded rate."""

Note = Callable[[str], None]
"""Takes one sentence on why a call was left to the original function."""


def dropout(
    original: Callable[..., torch.Tensor],
    note: Note,
    input: torch.Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    **unknown: Any,
) -> torch.Tensor:
    """`torch.nn.functional.dropout`; on other devices, and for what this function cannot do, the `original`."""
    computable = training and p > 0 and threshold_of(p) < LEVELS and input.device.type == "cpu"
    if computable and not (inplace or unknown) and input.is_floating_point():
        return _drop(input, threshold_of(p))
    if computable and (inplace or unknown):
        name = "inplace" if inplace else next(iter(unknown))
        note(f"dropout with the argument {name} is computed by torch's own kernel")
    return original(input, p=p, training=training, inplace=inplace, **unknown)


class _Dropout(torch.autograd.Function):
    """The mask is not saved: the backward pass draws it again, which takes less time than keeping it."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, threshold: int) -> torch.Tensor:
        ctx.seed, ctx.threshold, ctx.scale = draw_seed(), threshold, scale_of(threshold)
        scaled: torch.Tensor = states * ctx.scale
        return scaled.mul_(keep_mask(states, threshold, generator(ctx.seed)))

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (outer * ctx.scale).mul_(keep_mask(outer, ctx.threshold, generator(ctx.seed))), None


_drop: Callable[..., torch.Tensor] = _Dropout.apply


def threshold_of(rate: float) -> int:
    return round(rate * LEVELS)


def scale_of(threshold: int) -> float:
    """The factor that keeps the expected value."""
    return LEVELS / (LEVELS - threshold)


def draw_seed() -> int:
    """A seed from torch's generator, so that a resumed run draws the same masks."""
    return int(torch.randint(1 << 62, ()))


def generator(seed: int) -> np.random.SFC64:
    return np.random.SFC64(seed)


def keep_mask(states: torch.Tensor, threshold: int, bits: np.random.SFC64) -> torch.Tensor:
    """0 with probability `threshold` / LEVELS, else 1, in the shape and type of `states`.

    Numbers rather than booleans: multiplying by them is ten times faster.
    """
    words = bits.random_raw(-(-states.numel() // 4))
    drawn = torch.from_numpy(words.view(np.int16))[: states.numel()].view(states.shape)
    return torch.ge(drawn, threshold - LEVELS // 2, out=torch.empty(states.shape, dtype=states.dtype))
