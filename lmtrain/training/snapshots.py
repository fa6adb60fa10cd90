"""What of a run is kept for a while: its state at the edge of a step, and a checkpoint that is being written."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmtrain.preprocessing.stream import StreamState
from lmtrain.runs import checkpoint


@dataclass(frozen=True)
class StepSnapshot:
    """The state of a run at the edge of a step, besides weights and optimiser."""

    random: dict[str, Any]
    tokens: torch.Tensor
    """[3] tokens seen, tokens trained and slots for tokens, padding included, of this process."""
    loss: torch.Tensor
    """Sum over the steps since the last log."""
    stream: StreamState | None


@dataclass
class Elapsed:
    """How long a run takes, in seconds, over all resumes."""

    started: float
    """When this process started the run, by the monotonic clock."""
    began: float
    """When it began to train."""
    before: tuple[float, float] = (0.0, 0.0)
    """What `now` was at the checkpoint that the run resumes from."""

    def now(self) -> tuple[float, float]:
        """(seconds of the run, seconds of its training, evaluations included)."""
        now = time.monotonic()
        return self.before[0] + now - self.started, self.before[1] + now - self.began


@dataclass(frozen=True)
class Save:
    """A checkpoint that is being written."""

    aside: Path
    target: Path
    best: int | None
    """The best step at that time."""
    written: Future[Any] | None
    """Ends when this process has written its part; None if it has."""


@contextmanager
def discarded_on_failure(aside: Path) -> Iterator[None]:
    """Remove the temporary folder of a checkpoint if the block fails."""
    try:
        yield
    except BaseException:
        checkpoint.discard(aside)
        raise
