"""The Trainer callback that shows progress on the terminal."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from lmtrain.metrics import plain_name
from lmtrain.runtime.console import Console, format_number

SECONDS_BETWEEN_LINES = 5.0


class LiveProgress(TrainerCallback):
    """Step, loss, tokens per second, time left and the last evaluation.

    On a terminal this is one live line. Elsewhere it is a plain line at a logging step, at most one every
    SECONDS_BETWEEN_LINES.
    """

    def __init__(self, console: Console):
        self.console = console
        self.bar: Progress | None = None
        self.evaluated = ""
        self.started = self.last_line = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.console.live:
            columns: list[ProgressColumn] = [
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[news]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[evaluated]}"),
            ]
            self.bar = Progress(*columns, console=self.console.err, transient=True)
            self.task = self.bar.add_task(
                "", total=state.max_steps, completed=state.global_step, news="", evaluated=""
            )
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            shown = [f"{plain_name(name)} {format_number(logs[name])}" for name in logs if name.startswith("eval_")]
            self.evaluated = " · ".join(shown)
            if self.bar:
                self.bar.update(self.task, evaluated=f"eval_loss {format_number(logs['eval_loss'])}")
            self.console.note(f"step {state.global_step}: {self.evaluated}")
        elif "loss" in logs:
            speed = f" · {logs['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in logs else ""
            news = f"loss {format_number(logs['loss'])}{speed}"
            if self.bar:
                self.bar.update(self.task, news=news)
            elif self._due(state):
                self.console.note(f"step {state.global_step}/{state.max_steps} · {news} · {self._left(state)} left")

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
