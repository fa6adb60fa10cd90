"""The option `--average`: which weights are averaged."""

import re
from dataclasses import dataclass

LAST, EMA = "last", "ema"
FORM = re.compile(r"(last):([1-9]\d*)|(ema):(0?\.\d+)")


@dataclass(frozen=True)
class Average:
    """The mean of the last checkpoints, or an exponential moving average over the steps."""

    kind: str
    checkpoints: int = 0
    """With last: how many checkpoints."""
    decay: float = 0.0
    """With ema: the share of the old average that a step keeps."""


def parse_average(text: str | None) -> Average | None:
    """`last:5` or `ema:0.999`. Raises ValueError."""
    if text is None:
        return None
    match = FORM.fullmatch(text)
    if match is None or (match[2] and int(match[2]) < 2) or (match[4] and not 0 < float(match[4]) < 1):
        raise ValueError("write last:N, the mean of the last N checkpoints (2 or more), or ema:DECAY, e.g. ema:0.999")
    return Average(LAST, checkpoints=int(match[2])) if match[2] else Average(EMA, decay=float(match[4]))
