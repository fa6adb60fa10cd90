"""The Trainer callback that decides to evaluate, save, stop or fail."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import TrainerCallback

from lmtrain.config.recipe import Recipe
from lmtrain.errors import BrokenDown, visible
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.scores import Scores
from lmtrain.metrics import plain_name
from lmtrain.modeling.loss import evaluating
from lmtrain.objectives.generation import decode
from lmtrain.preprocessing.batch import Batch
from lmtrain.preprocessing.stream import Stream
from lmtrain.runs import checkpoint
from lmtrain.runs.file_names import METRICS, SAMPLES
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime import signals
from lmtrain.runtime.console import Console
from lmtrain.training.hosts import of_first, on_every_host
from lmtrain.training.tracked_texts import TrackedTexts
from lmtrain.training.trainer import ExactTrainer

NAMED = 3
"""Rows named in the message about a step whose loss is not finite."""


class RunCallback(TrainerCallback):
    """Decides when to evaluate, save and stop, and writes metrics.jsonl and samples.jsonl."""

    def __init__(
        self,
        trainer: ExactTrainer,
        recipe: Recipe,
        folder: RunFolder,
        evaluator: Evaluator | None,
        console: Console,
        texts: TrackedTexts,
    ):
        self.trainer, self.recipe, self.folder, self.texts = trainer, recipe, folder, texts
        self.evaluator, self.console = evaluator, console
        self.began = time.monotonic()
        self.evaluated_at = -1
        self.stopped_by: int | None = None
        self.initial: dict[str, float] = {}
        self.scores: dict[int, Scores] = {}  # by step: the best one and the last one evaluated
        self.unwritten: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While open, Ctrl-C or SIGTERM stops the training with a checkpoint; a second one exits at once."""

        def announce() -> None:
            self.console.warn("stopping with a checkpoint; interrupt again to exit at once")

        try:
            with signals.deferred(announce, alone=not self.trainer.several):
                yield
        except signals.Stopped:
            self.stopped_by = signals.received()
            control = self.trainer.control
            self.trainer.save_interrupted({"evaluate": control.should_evaluate, "save": control.should_save})

    # --- events

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.trainer.elapsed.began = time.monotonic()
        if pause := self.recipe.run.stop_at:
            step = steps_of(pause, state.max_steps)
            self.trainer.pause = step if step < state.max_steps else None
        self.epoch_of_stream = self.trainer.batches.state.epoch if isinstance(self.trainer.batches, Stream) else 0
        if state.global_step and (path := self.folder.path / METRICS).exists():
            first = json.loads(path.read_text(encoding="utf-8").partition("\n")[0] or "{}")
            if first.get("step") == 0 and "eval_loss" in first:
                self.initial = {name: value for name, value in first.items() if name not in ("step", "epoch")}
        if self.trainer.resumed:
            self.trainer.catch_up()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss, gradient = self.trainer.is_finite()
        if not (loss and gradient):
            self._not_finite("the loss" if not loss else "the gradient", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._detect_epoch_of_stream(control)
        if self._time_is_up() or state.global_step >= state.max_steps:
            control.should_training_stop, control.should_save, control.should_log = True, True, True
            control.should_evaluate = self.evaluator is not None
        elif self.paused:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = self.evaluator is not None

    @property
    def paused(self) -> bool:
        """Whether the run has reached --stop-at, before its end."""
        return self.trainer.pause is not None and self.trainer.state.global_step >= self.trainer.pause

    def _time_is_up(self) -> bool:
        limit, accelerator = self.recipe.train.max_time, self.trainer.accelerator
        if limit is None:
            return False
        over = torch.tensor(int(time.monotonic() - self.began >= limit), device=accelerator.device)
        return bool(accelerator.reduce(over) > 0)

    def _detect_epoch_of_stream(self, control: Any) -> None:
        """Evaluate and save at the end of a stream's epoch, which to Trainer is one endless epoch."""
        stream = self.trainer.batches
        if isinstance(stream, Stream) and stream.state.epoch != self.epoch_of_stream:
            self.epoch_of_stream = stream.state.epoch
            control.should_evaluate |= self.evaluator is not None and self.recipe.eval.every == "epoch"
            control.should_save |= self.recipe.train.save_every == "epoch"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The last step of an epoch may already be evaluated and saved: by its number, or as the last of the run.
        control.should_evaluate = control.should_evaluate and self.evaluated_at != state.global_step
        control.should_save = control.should_save and self.trainer.saved_at != state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        values = {plain_name(name): value for name, value in metrics.items()}
        if state.global_step == 0:
            self.initial = values
        else:
            best_before = {s: scores for s, scores in self.scores.items() if s == state.best_global_step}
            self.scores = {**best_before, state.global_step: self.trainer.scores}
            value, best = metrics[args.metric_for_best_model], state.best_metric
            if best is None or (value > best if args.greater_is_better else value < best):
                control.should_save = True  # the best model is saved, whatever --save-every says
            self._show_samples(state.global_step)
        self.evaluated_at = state.global_step

    def _show_samples(self, step: int) -> None:
        if not (self.recipe.eval.samples and self.evaluator):
            return
        with evaluating(self.trainer.model):
            if self.console.main_process:
                samples = self.evaluator.samples(self.trainer.model, self.recipe.eval.samples)
                for sample in samples:
                    self._write(SAMPLES, {"step": step, **sample})
                self.texts.samples(step, samples)
                self.console.samples(samples[:1])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and self.console.main_process and ("loss" in logs or "eval_loss" in logs):
            plain = {plain_name(name): value for name, value in logs.items()}
            self._write(METRICS, {"step": state.global_step, **plain})
        if logs and not math.isfinite(logs.get("eval_loss", 0.0)):
            raise BrokenDown(f"eval_loss is not a finite number at step {state.global_step}; {self._remedy()}")

    def _write(self, name: str, document: dict[str, Any]) -> None:
        """Append a line to a file of the run folder; after an OSError it is written with the next one."""
        self.unwritten.append((name, document))
        try:
            while self.unwritten:
                self.folder.append(*self.unwritten[0])
                self.unwritten.pop(0)
        except OSError as error:
            if len(self.unwritten) == 1:
                self.console.warn(
                    f"{self.folder.path / name}: {error.strerror}; the line will be written with the next one"
                )

    # --- values that are not finite

    def _not_finite(self, what: str, step: int) -> None:
        """Skip the update, as often as --on-nonfinite allows; else raise BrokenDown."""
        rows = self._suspects()
        if self.console.main_process:
            self._write(METRICS, {"step": step, "loss": None, "not_finite": what, "rows": rows[: NAMED * 10]})
        named = "; ".join(rows[:NAMED]) + (f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
        if self.trainer.skipped < self.recipe.train.skips:
            self.trainer.skip_update()
            left = self.recipe.train.skips - self.trainer.skipped
            self.console.warn(
                f"{what} of step {step} is not a finite number: the update is skipped; skips left: {left}. "
                f"Rows: {named}"
            )
            return
        applied = (
            "DeepSpeed has applied the update" if self.trainer.is_deepspeed_enabled else "the update is not applied"
        )
        raise BrokenDown(
            f"{what} of step {step} is not a finite number; {applied}. {self._remedy()}\nrows of the step: {named}"
        )

    def _remedy(self) -> str:
        return (
            f"Try a lower --learning-rate. The checkpoints in {self.folder.checkpoints} are older than this step; if "
            "training from the newest one fails again, resume from an earlier one"
        )

    def _suspects(self) -> list[str]:
        """The decoded rows of this step whose own loss is not finite; all rows if the loss of each is finite."""
        tokenizer, bad, all_rows = self.trainer.processing_class, [], []
        for batch in self.trainer.samples:
            texts = [
                f"'{visible(decode(tokenizer, ids[mask.bool()]))}'"
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            all_rows += texts
            bad += [row for row, fine in zip(texts, self._each_is_finite(batch), strict=True) if not fine]
        return bad or all_rows

    def _each_is_finite(self, batch: Batch) -> list[bool]:
        with suppress(RuntimeError, MemoryError), evaluating(self.trainer.model), torch.no_grad():
            batch = {name: tensor.to(self.trainer.args.device) for name, tensor in batch.items()}
            return torch.isfinite(self.trainer.token_loss.score(self.trainer.model, batch).nll).tolist()
        return [True] * len(batch["labels"])

    # --- the end

    def final_scores(self) -> Scores | None:
        """The scores of the model that is saved: the best one, which is loaded first, or the last."""
        state = self.trainer.state
        if self.evaluator is None or self.stopped_by:
            return None
        step = state.global_step if self.paused else of_first(self._best()) or state.global_step
        if step != state.global_step:
            with on_every_host(checkpoint.path_of(self.folder.checkpoints, step)) as path:
                state.best_model_checkpoint = str(path)
                self.trainer._load_best_model()
            self.console.note(f"keeping the model of step {step}, the best by {self.recipe.eval.best_metric}")
        if step in self.scores:
            return self.scores[step]
        scores = self.evaluator.run(self.trainer.model, self.trainer.accelerator)
        if step == 0:
            self.initial = self.initial or scores.values
        return scores

    def _best(self) -> int | None:
        """The best step, if it is not the last one and its checkpoint is intact."""
        state = self.trainer.state
        if not state.best_global_step or state.best_global_step == state.global_step:
            return None
        path = checkpoint.path_of(self.folder.checkpoints, state.best_global_step)
        if wrong := checkpoint.damage(path):
            self.console.warn(f"{path}: {wrong}; keeping the last model instead of the best")
            return None
        return int(state.best_global_step)


def steps_of(end: float, steps: int) -> int:
    """A number of steps, or a share of `steps` if below 1."""
    return max(round(end * steps), 1) if end < 1 else int(end)
