"""Atomic checkpoints for Trainer, which never execute code when they are loaded."""

import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerControl
from transformers.trainer_callback import ExportableState

from lmtrain.config.model_checks import SHARDED
from lmtrain.errors import UsageError
from lmtrain.modeling import lora, sharding
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.stream import Stream, StreamState
from lmtrain.runs import checkpoint
from lmtrain.runtime.console import to_json
from lmtrain.training import training_state
from lmtrain.training.hosts import of_first
from lmtrain.training.snapshots import Elapsed, Save, StepSnapshot, discarded_on_failure


class CheckpointingTrainer(Trainer):
    """The part of ExactTrainer that saves and resumes.

    A checkpoint holds the state at the end of a step, even when the next step was interrupted.
    """

    # What Trainer declares as optional or as any module, and what is always there here.
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR

    batches: BatchSampler | Stream
    tokens: torch.Tensor
    """The tokens, as in StepSnapshot, that this process has seen so far."""
    identity: dict[str, Any]
    """Identifies the run in its checkpoints (compatibility.py)."""
    keep: int
    """The number of checkpoints that stay."""
    resumed: dict[str, Any]
    """The state that the run resumes from; empty for a new run."""
    step_end: StepSnapshot
    tokens_before: tuple[int, int, int]
    """The tokens, as in StepSnapshot, of the run before this process began."""
    tokens_saved: tuple[int, int, int]
    """Those at the last checkpoint."""
    rows_at_once: int | None
    """Rows that fit into memory at once; None if a whole batch does."""
    elapsed: Elapsed
    average: dict[str, torch.Tensor] | None
    """The moving average of the trained weights, where there is one."""
    skipped: int
    """Updates skipped because they were not finite."""
    saved_at: int
    """The step of the last checkpoint."""
    sharding: sharding.Sharding | None
    saving: Save | None
    """The checkpoint that is being written."""

    def count(self, tokens: torch.Tensor | None = None) -> tuple[int, int, int]:
        """The tokens (see StepSnapshot) since the run began, over all resumes and processes; each must call it."""
        reduced = self.accelerator.reduce(self.tokens if tokens is None else tokens)
        seen, trained, slots = (before + int(n) for before, n in zip(self.tokens_before, reduced, strict=True))
        return seen, trained, slots

    @property
    def is_sharded(self) -> bool:
        return sharding.is_sharded(self.model)

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights of a sharded model in the first process; all processes must call it.

        None where the model is whole: it is saved as it is, bare of wrappers and of the compiler.
        """
        if self.is_deepspeed_enabled:
            weights: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
            return weights
        return sharding.whole_weights(self.model, self.is_world_process_zero()) if self.is_sharded else None

    @property
    def checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def several(self) -> bool:
        return bool(self.accelerator.num_processes > 1)

    def save_interrupted(self, pending: dict[str, bool]) -> None:
        """Save the last complete step of an interrupted run, with the actions `pending` after it (evaluate, save)."""
        if self.state.global_step and (self.saved_at != self.state.global_step or any(pending.values())):
            self._save_checkpoint(self.model_wrapped, None, pending)
        self.finish_save()

    def _save_checkpoint(self, model: Any, trial: Any, pending: dict[str, bool] | None = None) -> None:
        """Save what Trainer saves, atomically and without pickle."""
        self.finish_save()
        target = checkpoint.path_of(self.checkpoints, self.state.global_step)
        self.store_flos()
        if self.state.best_global_step:
            best = checkpoint.path_of(self.checkpoints, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        state = self._state(pending or {})
        self.tokens_saved = state["tokens"]
        aside = of_first(checkpoint.begin(target) if self.is_world_process_zero() else target)
        written: Future[Any] | None = None
        with discarded_on_failure(aside):
            written = self._save_weights(aside)
            if self.is_world_process_zero():
                training_state.save(aside, state)
                self._remember_callbacks()
                # As TrainerState.save_to_json, which writes NaN where JSON has no word for it.
                (aside / "trainer_state.json").write_text(
                    to_json(asdict(self.state), indent=2) + "\n", encoding="utf-8"
                )
        self.saved_at = self.state.global_step
        self.saving = Save(aside, target, self.state.best_global_step, written)
        if written is None:
            self.finish_save()

    def finish_save(self, wait: bool = True) -> None:
        """Publish the checkpoint that is being written; if it is not to `wait`, only once all processes have written.

        All processes must call it.
        """
        if (save := self.saving) is None:
            return
        if save.written and not wait:
            writing = torch.tensor(int(not save.written.done()), device=self.accelerator.device)
            if self.accelerator.reduce(writing) > 0:
                return
        self.saving = None
        with discarded_on_failure(save.aside):
            if save.written:
                save.written.result()
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                checkpoint.publish(save.aside, save.target, self.identity)
        if self.is_world_process_zero():
            checkpoint.rotate(self.checkpoints, checkpoint.step_of(save.target), save.best, self.keep)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(save.target))

    def _save_weights(self, aside: Path) -> Future[Any] | None:
        """Save the weights, and the optimizer where it is not in `_state`; what ends with the writing, if it is not done."""
        if self.is_sharded:
            from lmtrain.training import sharded_state

            if self.args.should_save:
                lora.save_settings(self.model, aside)
                self.processing_class.save_pretrained(aside)
            background = bool(self.sharding and self.sharding.async_save)
            return sharded_state.save(aside, self.model, self.optimizer, background)
        self.save_model(str(aside), _internal_call=True)
        if self.is_deepspeed_enabled:  # by its own means
            engine: Any = self.model_wrapped
            engine.save_checkpoint(str(aside))
        return None

    def _saved_optimizer(self) -> dict[str, Any] | None:
        state = None if self.is_deepspeed_enabled else self.optimizer.state_dict()
        if state is None or not self.is_sharded:
            return state
        from lmtrain.training import sharded_state

        return sharded_state.without_sharded(state)

    def _state(self, pending: dict[str, bool]) -> dict[str, Any]:
        """The state that a run resumes from, besides weights and TrainerState."""
        stream, scaler = self.step_end.stream, getattr(self.accelerator, "scaler", None)
        return {
            "optimizer": self._saved_optimizer(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": gather_object([self.step_end.random]) if self.several else [self.step_end.random],
            "tokens": self.count(self.step_end.tokens),
            "loss": float(self.accelerator.reduce(self.step_end.loss.double(), "mean")),
            "logged_at": self._globalstep_last_logged,
            "stream": stream.to_json() if stream else None,
            "rows_at_once": self.rows_at_once,
            "skipped": self.skipped,
            "average": self.average,
            "elapsed": self.elapsed.now(),
            "still_to_do": pending,
        }

    def _remember_callbacks(self) -> None:
        """Keep the state of the callbacks, such as the patience of early stopping, in TrainerState."""
        known = {
            type(c).__name__: c.state() for c in self.callback_handler.callbacks if isinstance(c, ExportableState)
        }
        # Not what the control is about to do: that is `pending`.
        callbacks: Any = self.state.stateful_callbacks  # a dict, though declared as a list
        callbacks.update(known | {"TrainerControl": TrainerControl().state()})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As Trainer does, but without its arguments, which would be a pickle."""
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            lora.save(self.model, folder, state_dict)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_weights(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_weights(Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()

    def _load_weights(self, path: Path) -> bool:
        """Load the weights of a checkpoint, unless Trainer does it: whole ones into a network that is whole."""
        if _is_sharded(path):
            from lmtrain.training import sharded_state

            sharded_state.load_weights(path, self.model)
        elif lora.is_adapted(self.model):
            lora.load_weights(self.model, path)
        elif self.is_sharded:
            sharding.load_folder(self.model, path)
        else:
            return False
        return True

    def recall(self, path: Path) -> None:
        """Before training: read the state of the checkpoint `path`. Raises UsageError for another --shuffle-buffer."""
        self.resumed = training_state.load(path)
        self.tokens_before = self.tokens_saved = self.resumed["tokens"]
        self.rows_at_once, self.skipped = self.resumed["rows_at_once"], self.resumed["skipped"]
        # Checkpoints of earlier versions have neither.
        self.average, self.elapsed.before = self.resumed.get("average"), self.resumed.get("elapsed", (0.0, 0.0))
        if isinstance(self.batches, Stream):
            state = StreamState.from_json(self.resumed["stream"])
            if state.chunk != self.batches.chunk:
                raise UsageError(
                    f"--shuffle-buffer {self.batches.chunk}: the run to resume read {state.chunk} rows "
                    "at a time; keep that"
                )
            self.batches.state = state

    def catch_up(self) -> None:
        """When training begins: evaluate or save if that was pending at the step that the run resumes from."""
        self._tr_loss += self.resumed["loss"]
        self._globalstep_last_logged = self.resumed["logged_at"]
        self.saved_at = self.state.global_step
        pending = self.resumed["still_to_do"]
        if any(pending.values()):
            self._load_rng_state(None)
            self.saved_at = -1
            self.control.should_evaluate, self.control.should_save = pending["evaluate"], pending["save"]
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = self.resumed["optimizer"]
        if self.is_deepspeed_enabled:
            pass  # it loads its optimizer with the weights
        elif self.is_sharded or _is_sharded(Path(checkpoint)):
            from lmtrain.training import sharded_state

            sharded_state.load_optimizer(Path(checkpoint), self.optimizer, state)
        else:
            self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(self.resumed["lr_scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.resumed["scaler"]:
            self.accelerator.scaler.load_state_dict(self.resumed["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state of this process; a new process (--allow-drift num_processes) keeps its own."""
        if self.args.process_index < len(self.resumed["random"]):
            training_state.set_random_state(self.resumed["random"][self.args.process_index])


def _is_sharded(path: Path) -> bool:
    return (path / SHARDED).is_dir()
