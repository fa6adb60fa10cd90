"""The Trainer callback that shows progress on the terminal."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from transformers import TrainerCallback

from lmtrain.metrics import distinct, plain_name
from lmtrain.runtime.console import Console, format_number
from lmtrain.runtime.streams import is_utf8

SECONDS_BETWEEN_LINES = 5.0

BLOCKS = "▁▂▃▄▅▆▇█"
WIDE, CURVE = 150, 20
"""Columns of a terminal from which on a curve of the loss is shown, and the columns that it takes."""


class LiveProgress(TrainerCallback):
    """Epoch, step, loss, learning rate, gradient norm, tokens per second, time left and the last evaluation.

    On a terminal this is one live line. Elsewhere it is a plain line at a logging step, at most one every
    SECONDS_BETWEEN_LINES.
    """

    def __init__(self, console: Console):
        self.console = console
        self.bar: Progress | None = None
        self.evaluated = ""
        self.losses: list[float] = []
        self.started = self.last_line = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.console.live:
            columns: list[ProgressColumn] = [
                TextColumn("{task.fields[epoch]}step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[news]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[evaluated]}"),
                TextColumn("{task.fields[curve]}"),
            ]
            self.bar = Progress(*columns, console=self.console.err, transient=True)
            fields: dict[str, Any] = dict.fromkeys(("epoch", "news", "left", "evaluated", "curve"), "")
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, **fields)
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            epoch = f"epoch {state.epoch:.1f} · " if state.epoch else ""
            self.bar.update(self.task, completed=state.global_step, epoch=epoch, left=f"{self._left(state)} left")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            values = {plain_name(name): value for name, value in logs.items() if name.startswith("eval_")}
            shown = [f"{name} {format_number(value)}" for name, value in distinct(values).items()]
            self.evaluated = " · ".join(shown)
            if self.bar:
                self.bar.update(self.task, evaluated=f"eval_loss {format_number(logs['eval_loss'])}")
            self.console.note(f"step {state.global_step}: {self.evaluated}")
        elif "loss" in logs:
            self.losses.append(logs["loss"])
            news = news_of(logs)
            if self.bar:
                wide = self.console.err.width >= WIDE and is_utf8()
                self.bar.update(self.task, news=news, curve=sparkline(self.losses, CURVE) if wide else "")
            elif self._due(state):
                epoch = f"epoch {state.epoch:.2f} · " if state.epoch else ""
                self.console.note(
                    f"{epoch}step {state.global_step}/{state.max_steps} · {news} · {self._left(state)} left"
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _due(self, state: Any) -> bool:
        now = time.monotonic()
        due = now - self.last_line >= SECONDS_BETWEEN_LINES or state.global_step == state.max_steps
        self.last_line = now if due else self.last_line
        return due

    def _left(self, state: Any) -> str:
        done = max(state.global_step - self.first_step, 1)
        seconds = int((time.monotonic() - self.started) / done * (state.max_steps - state.global_step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}"


def news_of(logs: dict[str, Any]) -> str:
    """The figures of a logging step, in a line."""
    parts = [f"loss {format_number(logs['loss'])}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.2g}")
    if "grad_norm" in logs:
        parts.append(f"grad norm {float(logs['grad_norm']):.2g}")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return " · ".join(parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a line of blocks, each the mean of its part of them; those that are not finite are left out."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    width = min(width, len(finite))
    bounds = [round(number * len(finite) / width) for number in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((mean - low) / ((high - low) or 1) * (len(BLOCKS) - 1))] for mean in means)
