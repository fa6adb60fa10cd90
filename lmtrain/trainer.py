"""Trainer with our loss, our evaluation and our order of rows, and the watch that decides when to do what."""

import json
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from lmtrain.batching import Batches, Loader
from lmtrain.collate import IGNORED
from lmtrain.console import Console
from lmtrain.errors import BrokenDown, UsageError
from lmtrain.evaluate import Evaluation, Scores
from lmtrain.launch import is_launched
from lmtrain.loss import TokenLoss
from lmtrain.metrics import plain_name, trainer_name
from lmtrain.report import METRICS, SAMPLES, RunFolder, write_whole
from lmtrain.streaming import STREAM, State, Stream

COUNTS = "counts.json"
"""In a checkpoint: tokens seen, tokens trained and places for tokens, padding included, so far."""


class ExactTrainer(Trainer):
    """Trainer with an exact loss, an exact evaluation, and an order of rows that is a function of (seed, epoch)."""

    def prepare(self, loss: TokenLoss, evaluation: Evaluation | None, batches: Batches | Stream) -> "ExactTrainer":
        self.token_loss, self.evaluation, self.batches = loss, evaluation, batches
        # Trainer counts the labels of a whole step for models that say they divide by them: compute_loss does.
        self.model_accepts_loss_kwargs = True
        self.tokens = torch.zeros(3, dtype=torch.int64, device=self.args.device)  # of this process, see COUNTS
        self.finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        self.before = (0, 0, 0)
        return self

    def count(self) -> tuple[int, int, int]:
        """The COUNTS since the run began, over all processes and resumes; to be asked by all of them."""
        seen, trained, places = (
            b + int(n) for b, n in zip(self.before, self.accelerator.reduce(self.tokens), strict=True)
        )
        return seen, trained, places

    def recall(self, checkpoint: Path) -> None:
        """Go on counting from where `checkpoint` was saved."""
        path = checkpoint / COUNTS
        if path.exists():
            self.before = tuple(json.loads(path.read_text()))
        if isinstance(self.batches, Stream):
            state = State.from_json((checkpoint / STREAM).read_text(encoding="utf-8"))
            if state.chunk != self.batches.chunk:
                raise UsageError(f"--shuffle-buffer {self.batches.chunk}: the run that goes on here read {state.chunk} rows at "
                                 "a time, and would lose its place; keep that")  # fmt: skip
            self.batches.state = state

    def remember(self, checkpoint: Path, counts: tuple[int, int, int]) -> None:
        """What `recall` wants to know."""
        write_whole(checkpoint / COUNTS, json.dumps(counts))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First of all, so that no checkpoint that looks whole is without it.
        if isinstance(self.batches, Stream) and self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / STREAM, self.batches.state.to_json())
        super()._save_checkpoint(model, trial)

    def get_train_dataloader(self) -> Any:
        """Whole batches, which know of processes and epochs themselves: accelerate has nothing to add to them."""
        if isinstance(self.batches, Stream):
            return self.batches
        return Loader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers, persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.accelerator.is_available(),
        )  # fmt: skip

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self._count(inputs["attention_mask"], inputs["labels"] != IGNORED)
        loss = self.token_loss(model, inputs, num_items_in_batch)
        self.finite &= torch.isfinite(loss.detach())
        # DistributedDataParallel averages gradients over the processes; the exact loss wants their sum.
        return loss * self.accelerator.num_processes

    def _count(self, mask: torch.Tensor, labels: torch.Tensor) -> None:
        blank = (mask.sum(1) == 1) & ~labels.any(1)
        decoded, more = (labels.sum(), labels.numel()) if self.model.config.is_encoder_decoder else (0, 0)
        places = torch.full_like(blank.sum(), mask.numel() + more)
        self.tokens += torch.stack([mask.sum() - blank.sum() + decoded, labels.sum(), places])

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Trainer's mean of batch means replaced by the exact evaluation; the callbacks see it as usual."""
        assert self.evaluation
        # An untrained model's outputs say nothing, and it seldom knows how to stop: only its likelihoods.
        self.scores = self.evaluation.run(self.model, self.accelerator, write=self.state.global_step > 0)
        logs = {trainer_name(name): value for name, value in self.scores.figures.items()}
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and start_time is not None:
            seconds = time.time() - start_time
            logs["tokens_per_second"] = int(self.tokens[0]) * self.args.world_size / max(seconds, 1e-9)
        super().log(logs, start_time)


class Watch(TrainerCallback):
    """Decides when to evaluate, save and stop, and writes down what happens."""

    def __init__(self, recipe: Any, folder: RunFolder, evaluation: Evaluation | None, console: Console):
        self.recipe, self.folder, self.evaluation, self.console = recipe, folder, evaluation, console
        self.trainer: ExactTrainer = None  # type: ignore[assignment]
        self.began = time.monotonic()
        self.evaluated_at = self.saved_at = -1
        self.stopped_by: int | None = None
        self.counted = (0, 0, 0)
        self.initial: dict[str, float] = {}
        self.scores: dict[int, Scores] = {}  # of the best step and of the last that was evaluated

    # --- signals

    def signals(self) -> Any:
        """While training, Ctrl-C and SIGTERM ask for a checkpoint and a stop; a second one leaves at once."""
        return _Signals(self)

    def _asked_to_stop(self) -> tuple[bool, bool]:
        """(whether a signal came, whether the time is up), the same on every process."""
        limit = self.recipe.train.max_time
        over = limit is not None and time.monotonic() - self.began >= limit
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            asked = torch.tensor([self.stopped_by is not None, over], dtype=torch.int64, device=accelerator.device)
            signalled, over = (bool(flag) for flag in accelerator.reduce(asked))
            self.stopped_by = (self.stopped_by or signal.SIGTERM) if signalled else self.stopped_by
        return self.stopped_by is not None, over

    # --- events

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        self.epoch_of_stream = self.trainer.batches.state.epoch if isinstance(self.trainer.batches, Stream) else 0
        if state.global_step and (path := self.folder.path / METRICS).exists():
            first = json.loads(path.read_text(encoding="utf-8").partition("\n")[0] or "{}")
            if first.get("step") == 0 and "eval_loss" in first:
                self.initial = {name: value for name, value in first.items() if name not in ("step", "epoch")}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        stopped, over = self._asked_to_stop()
        self._mind_the_epochs_of_a_stream(control)
        if stopped:
            control.should_training_stop, control.should_save = True, True
            control.should_evaluate = False
        elif over or state.global_step >= state.max_steps:
            control.should_training_stop, control.should_save, control.should_log = True, True, True
            control.should_evaluate = self.evaluation is not None
        if (control.should_save or control.should_evaluate) and not self.trainer.finite:
            self._break_down(state.global_step)

    def _mind_the_epochs_of_a_stream(self, control: Any) -> None:
        """Trainer takes a stream for one epoch without end."""
        stream = self.trainer.batches
        if isinstance(stream, Stream) and stream.state.epoch != self.epoch_of_stream:
            self.epoch_of_stream = stream.state.epoch
            control.should_evaluate |= self.evaluation is not None and self.recipe.eval.every == "epoch"
            control.should_save |= self.recipe.train.save_every == "epoch"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The last step of an epoch may have been evaluated and saved already, by number or because it is the last.
        control.should_evaluate = control.should_evaluate and self.evaluated_at != state.global_step
        control.should_save = control.should_save and self.saved_at != state.global_step
        if self.stopped_by:
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_at = state.global_step
        self.counted = self.trainer.count()
        if self.console.main_process:
            self.trainer.remember(self.folder.checkpoints / f"checkpoint-{state.global_step}", self.counted)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        figures = {plain_name(name): value for name, value in metrics.items()}
        if state.global_step == 0:
            self.initial = figures
        else:
            best_before = {s: scores for s, scores in self.scores.items() if s == state.best_global_step}
            self.scores = {**best_before, state.global_step: self.trainer.scores}
            value, best = metrics[args.metric_for_best_model], state.best_metric
            if best is None or (value > best if args.greater_is_better else value < best):
                control.should_save = True  # the best model is kept, whatever --save-every says
            self._show_samples(state.global_step)
        self.evaluated_at = state.global_step

    def _show_samples(self, step: int) -> None:
        if self.recipe.eval.samples and self.evaluation and self.console.main_process:
            samples = self.evaluation.samples(self.trainer.model, self.recipe.eval.samples)
            for sample in samples:
                self.folder.append(SAMPLES, {"step": step, **sample})
            self.console.samples(samples[:1])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and self.console.main_process and ("loss" in logs or "eval_loss" in logs):
            plain = {plain_name(name): value for name, value in logs.items()}
            self.folder.append(METRICS, {"step": state.global_step, **plain})
        if logs and any(not math.isfinite(logs.get(name, 0.0)) for name in ("loss", "eval_loss")):
            self._break_down(state.global_step)

    def _break_down(self, step: int) -> None:
        raise BrokenDown(
            f"the loss is no longer a finite number, at step {step} or shortly before; try a lower --learning-rate. "
            f"Checkpoints in {self.folder.checkpoints} are from before"
        )

    def final_scores(self) -> Scores | None:
        """The scores of the model that is kept: the best one, which is loaded, or the last."""
        state = self.trainer.state
        if self.evaluation is None:
            return None
        best = state.best_global_step
        kept = state.best_model_checkpoint
        if best and best != state.global_step and kept and Path(kept).is_dir() and not self.stopped_by:
            self.trainer._load_best_model()
            self.console.note(f"keeping the model of step {best}, the best by {self.recipe.eval.best_metric}")
            state_step = best
        else:
            state_step = state.global_step
        if state_step in self.scores:
            return self.scores[state_step]
        if self.stopped_by:
            return None
        scores = self.evaluation.run(self.trainer.model, self.trainer.accelerator)
        if state_step == 0:
            self.initial = self.initial or scores.figures
        return scores


@dataclass
class _Signals:
    run: Watch

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.run.stopped_by and not is_launched():
            os._exit(128 + number)  # a launcher passes on what its terminal sends as well: not a second wish
        self.run.stopped_by = number
        self.run.console.warn("stopping after this step, with a checkpoint; once more leaves at once")

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
