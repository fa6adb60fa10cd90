"""Trainer with our loss, our evaluation, our order of rows and our checkpoints."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerControl
from transformers.trainer_callback import ExportableState

from lmtrain.errors import OutOfMemory, UsageError
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.metrics import trainer_name
from lmtrain.modeling import lora
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.padding_free import PaddingFree
from lmtrain.preprocessing.batch import IGNORED, Batch
from lmtrain.preprocessing.sampler import BatchSampler, Loader
from lmtrain.preprocessing.stream import Stream, StreamState
from lmtrain.runs import checkpoint
from lmtrain.runtime import memory, signals
from lmtrain.training import out_of_memory, training_state


class Finished(Exception):  # not an error: nothing is wrong
    """A run goes on from the checkpoint of its last step."""


@dataclass(frozen=True)
class StepSnapshot:
    """What there is of a run beside its weights and optimiser."""

    random: dict[str, Any]
    tokens: torch.Tensor
    """[3] tokens seen, tokens trained and places for tokens, padding included, of this process."""
    loss: torch.Tensor
    """Sum over the steps since the last log."""
    stream: StreamState | None


class ExactTrainer(Trainer):
    """Trainer with an exact loss and evaluation, an order of rows that is a function of (seed, epoch), and a state
    that is saved whole.

    What a checkpoint keeps is of the end of a step, whenever it is saved: also of one that is broken off half-way.
    """

    def prepare(
        self, loss: TokenLoss, evaluation: Evaluator | None, batches: BatchSampler | Stream,
        identity: dict[str, Any] | None = None, keep: int = 2, warn: Callable[[str], None] = str,
        joining: PaddingFree | None = None,
    ) -> "ExactTrainer":  # fmt: skip
        """`identity` is what checkpoints will know the run by, `keep` how many of them stay, `warn` says what happens;
        with `joining` the texts of a batch are laid end to end.
        """
        self.token_loss, self.evaluation, self.batches, self.joining = loss, evaluation, batches, joining
        self.identity, self.keep, self.warn = identity or {}, keep, warn
        # Trainer counts the labels of a whole step for models that say they divide by them: compute_loss does.
        self.model_accepts_loss_kwargs = True
        self.tokens = torch.zeros(3, dtype=torch.int64, device=self.args.device)
        self.before = self.counted = (
            0,
            0,
            0,
        )  # tokens, as in Moment: before this process began, at the last checkpoint
        self.finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        self.grad_norm: Any = 0.0
        self.skipped = 0
        self.rows_at_once: int | None = None
        self.resumed: dict[str, Any] = {}
        self.saved_at = -1
        self.samples: list[Batch] = []
        return self

    @property
    def checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def several(self) -> bool:
        return self.accelerator.num_processes > 1

    # --- a step

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

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """The micro-batches of a step, unless the run ends before it. Raises Stopped, Finished."""
        if self.state.global_step >= self.state.max_steps:
            raise Finished
        self.stop_together()
        samples, items = super().get_batch_samples(*arguments, **options)
        self.samples, self.begun = samples, 0
        self.finite = torch.ones_like(self.finite)
        return samples, items

    def stop_together(self) -> None:
        """Raise Stopped if this process, or one that it has to keep step with, was asked to stop."""
        signals.check()
        if self.several:
            asked = torch.tensor(int(signals.asked() is not None), device=self.accelerator.device)
            if self.accelerator.reduce(asked) > 0:
                signals.agreed(SIGTERM)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Out of memory, the whole step begins anew with half the rows at once: the same loss of the same rows."""
        signals.check()
        if self.begun == 0:
            self.start = self._moment()
        self.begun += 1
        batches = [inputs]
        while True:
            try:
                return sum(self._in_parts(model, batch, num_items_in_batch) for batch in batches)  # type: ignore[return-value]
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Out here the exception, and with it what its frames hold, is gone.
            batches = self.samples[: self.begun]
            self._retreat(model, batches)

    def _in_parts(self, model: Any, batch: Batch, items: Any) -> torch.Tensor:
        rows = self.rows_at_once
        parts = out_of_memory.split_batch(batch, rows, self.data_collator.fixed) if rows else [batch]
        losses = []
        for number, part in enumerate(parts, 1):
            # Gradients are exchanged once, with the last.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, self._laid(part), items))
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _laid(self, batch: Batch) -> Batch:
        """As the model reads it; here, before it goes to a device, lengths are known without waiting for one."""
        return self.joining(self.model, batch) if self.joining else batch

    def _retreat(self, model: Any, batches: list[Batch]) -> None:
        """Back to the start of the step, with half the rows at once. Raises OutOfMemory where that was one."""
        most = max(len(batch["labels"]) for batch in batches)
        rows = min(self.rows_at_once or most, most)
        if rows == 1:
            raise OutOfMemory(out_of_memory.advice(self.model, batches[-1], str(self.args.optim)))
        if self.several:
            raise OutOfMemory(f"out of memory with {rows} rows at once; the same loss with less memory: --batch-size "
                              f"{rows // 2} --grad-accum {self.args.gradient_accumulation_steps * 2}")  # fmt: skip
        self.rows_at_once = -(-rows // 2)
        self.warn(f"out of memory with {rows} rows at once at step {self.state.global_step + 1}: going on with "
                  f"{self.rows_at_once}; a step has as many as before, and the same loss")  # fmt: skip
        memory.free_device_memory()
        model.zero_grad()
        training_state.set_random_state(self.start.random)
        self.tokens.copy_(self.start.tokens)
        self._tr_loss.copy_(self.start.loss)
        self.finite = torch.ones_like(self.finite)

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

    def count(self, tokens: torch.Tensor | None = None) -> tuple[int, int, int]:
        """The tokens (see Moment) since the run began, over all processes and resumes; to be asked by all of them."""
        reduced = self.accelerator.reduce(self.tokens if tokens is None else tokens)
        seen, trained, places = (b + int(n) for b, n in zip(self.before, reduced, strict=True))
        return seen, trained, places

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.grad_norm

    def is_finite(self) -> tuple[bool, bool]:
        """Whether (the loss, the norm of the gradient) of this step are finite, on all processes.

        In half precision a gradient that overflows is nothing amiss: the scale of the loss is still being found.
        """
        loss = self.finite.to(torch.int64)
        if self.several:
            loss = self.accelerator.reduce(loss) // self.accelerator.num_processes
        norm = torch.as_tensor(self.grad_norm)
        scaler = getattr(self.accelerator, "scaler", None)
        return bool(loss), bool(torch.isfinite(norm)) if scaler is None else scaler.get_scale() > 1e-4

    def leave_out(self) -> None:
        """Make the update of this step none: no parameter, no moment of the optimiser, no logged loss is touched."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self._tr_loss.copy_(self.start.loss)
        self.skipped += 1

    # --- between two steps

    def _moment(self) -> StepSnapshot:
        stream = self.batches.state if isinstance(self.batches, Stream) else None
        return StepSnapshot(training_state.random_state(), self.tokens.clone(), self._tr_loss.detach().clone(), stream)

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        self.edge = self._moment()
        super()._maybe_log_save_evaluate(*arguments, **options)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Trainer's mean of batch means replaced by the exact evaluation; the callbacks see it as usual.

        Whatever it draws by chance, training goes on as if it had not. Raises Stopped.
        """
        assert self.evaluation
        self.stop_together()
        before = training_state.random_state()
        # An untrained model's outputs say nothing, and it seldom knows how to stop: only its likelihoods.
        self.scores = self.evaluation.run(self.model, self.accelerator, write=self.state.global_step > 0)
        logs = {trainer_name(name): value for name, value in self.scores.figures.items()}
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        training_state.set_random_state(before)
        return logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and start_time is not None:
            seconds = time.time() - start_time
            logs["tokens_per_second"] = int(self.tokens[0]) * self.args.world_size / max(seconds, 1e-9)
            self.edge = replace(self.edge, loss=self._tr_loss.detach().clone())  # it begins anew
        super().log(logs, start_time)

    # --- checkpoints

    def save_where_it_stands(self, still_to_do: dict[str, bool]) -> None:
        """The checkpoint of a run that is broken off: of its last whole step, with what was still to be done after it."""
        if self.state.global_step and (self.saved_at != self.state.global_step or any(still_to_do.values())):
            self._save_checkpoint(self.model_wrapped, None, still_to_do)

    def _save_checkpoint(self, model: Any, trial: Any, still_to_do: dict[str, bool] | None = None) -> None:
        """What Trainer saves, but whole or not at all, and nothing that could run code when it is read."""
        place = checkpoint.at(self.checkpoints, self.state.global_step)
        self.store_flos()
        if self.state.best_global_step:
            best = checkpoint.at(self.checkpoints, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        kept = self._state(still_to_do or {})
        self.counted = kept["tokens"]
        aside = self._together(partial(checkpoint.begin, place))
        try:
            self.save_model(str(aside), _internal_call=True)
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # in parts, by their own means
                self._save_optimizer_and_scheduler(str(aside))
            if self.is_world_process_zero():
                training_state.save(aside, kept)
                self._remember_callbacks()
                self.state.save_to_json(str(aside / "trainer_state.json"))
                self.accelerator.wait_for_everyone()
                checkpoint.publish(aside, place, self.identity)
            else:
                self.accelerator.wait_for_everyone()
        except BaseException:
            checkpoint.discard(aside)
            raise
        if self.is_world_process_zero():
            checkpoint.rotate(self.checkpoints, self.state.global_step, self.state.best_global_step, self.keep)
        self.accelerator.wait_for_everyone()
        self.saved_at = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _together(self, make: Any) -> Path:
        """What the first process makes, for all."""
        made = [make() if self.is_world_process_zero() else None]
        return gather_object(made)[0] if self.several else made[0]

    def _state(self, still_to_do: dict[str, bool]) -> dict[str, Any]:
        """What a run goes on from, beside weights and Trainer's own account of it."""
        stream, scaler = self.edge.stream, getattr(self.accelerator, "scaler", None)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return {
            "optimizer": None if sharded else self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": gather_object([self.edge.random]) if self.several else [self.edge.random],
            "tokens": self.count(self.edge.tokens),
            "loss": float(self.accelerator.reduce(self.edge.loss.double(), "mean")),
            "logged_at": self._globalstep_last_logged,
            "stream": stream.to_json() if stream else None,
            "rows_at_once": self.rows_at_once,
            "skipped": self.skipped,
            "still_to_do": still_to_do,
        }

    def _remember_callbacks(self) -> None:
        """Trainer's account keeps the state of its callbacks, such as the patience of early stopping."""
        known = {
            type(c).__name__: c.state() for c in self.callback_handler.callbacks if isinstance(c, ExportableState)
        }
        # Not what it is about to do: that is in `still_to_do`.
        self.state.stateful_callbacks.update(known | {"TrainerControl": TrainerControl().state()})

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As Trainer, but for its arguments, a pickle."""
        if self.args.should_save:
            lora.save(self.model, output_dir, state_dict)
            self.processing_class and self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if lora.is_adapted(self.model):
            lora.load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if lora.is_adapted(self.model):
            lora.load_weights(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def recall(self, path: Path) -> None:
        """Before training: go on from where `path` was saved. Raises UsageError for a stream that would lose its place."""
        self.resumed = training_state.load(path)
        self.before = self.counted = self.resumed["tokens"]
        self.rows_at_once, self.skipped = self.resumed["rows_at_once"], self.resumed["skipped"]
        if isinstance(self.batches, Stream):
            stands = StreamState.from_json(self.resumed["stream"])
            if stands.chunk != self.batches.chunk:
                raise UsageError(f"--shuffle-buffer {self.batches.chunk}: the run that goes on here read {stands.chunk} rows "
                                 "at a time, and would lose its place; keep that")  # fmt: skip
            self.batches.state = stands

    def catch_up(self) -> None:
        """As training begins: do what was still to be done at the step that the run goes on from."""
        self._tr_loss += self.resumed["loss"]
        self._globalstep_last_logged = self.resumed["logged_at"]
        self.saved_at = self.state.global_step
        still = self.resumed["still_to_do"]
        if any(still.values()):
            self._load_rng_state(None)
            self.saved_at = -1
            self.control.should_evaluate, self.control.should_save = still["evaluate"], still["save"]
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self.optimizer.load_state_dict(self.resumed["optimizer"])
        self.lr_scheduler.load_state_dict(self.resumed["lr_scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.resumed["scaler"]:
            self.accelerator.scaler.load_state_dict(self.resumed["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Of this process; one that there was none of before (--allow-drift num_processes) keeps its own."""
        if self.args.process_index < len(self.resumed["random"]):
            training_state.set_random_state(self.resumed["random"][self.args.process_index])
