"""Trainer with an exact loss and evaluation, its own order of rows, and atomic checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from signal import SIGTERM
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from lmtrain.errors import OutOfMemory
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.metrics import trainer_name
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.padding_free import PaddingFree
from lmtrain.modeling.sharding import Sharding
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator
from lmtrain.preprocessing.sampler import BatchSampler, Loader
from lmtrain.preprocessing.stream import Stream
from lmtrain.runtime import memory, signals
from lmtrain.training import out_of_memory, training_state
from lmtrain.training.checkpointing import CheckpointingTrainer
from lmtrain.training.snapshots import Elapsed, StepSnapshot


class Finished(Exception):  # not an error: nothing is wrong
    """The run was resumed from the checkpoint of its last step."""


class ExactTrainer(CheckpointingTrainer):
    """Trainer whose loss, evaluation, order of rows and resume are exact.

    upstream.py lists every override with what rests on it.
    """

    data_collator: Collator

    def __init__(
        self,
        network: PreTrainedModel,
        arguments: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        collator: Collator,
        loss: TokenLoss,
        batches: BatchSampler | Stream,
        *,
        evaluator: Evaluator | None = None,
        padding_free: PaddingFree | None = None,
        identity: dict[str, Any] | None = None,
        keep: int = 2,
        warn: Callable[[str], object] = str,
        sharding: Sharding | None = None,
    ):
        """`identity` identifies the run in its checkpoints, of which `keep` stay; `warn` reports to the user."""
        self.sharding, self.saving = sharding, None
        super().__init__(
            model=network,
            args=arguments,
            train_dataset=batches if isinstance(batches, Stream) else batches.examples,
            eval_dataset=evaluator.examples if evaluator else None,
            data_collator=collator,
            processing_class=tokenizer,
        )
        self.token_loss, self.batches, self.evaluator, self.padding_free = loss, batches, evaluator, padding_free
        self.identity, self.keep, self.warn = identity or {}, keep, warn
        # Trainer counts the labels of a whole step for models that divide by them, as compute_loss does.
        self.model_accepts_loss_kwargs = True
        self.tokens = torch.zeros(3, dtype=torch.int64, device=self.args.device)
        self.tokens_before: tuple[int, int, int] = (0, 0, 0)
        """The tokens, as in StepSnapshot, of the run before this process began."""
        self.tokens_saved = self.tokens_before
        """Those at the last checkpoint."""
        self.finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        self.grad_norm: Any = 0.0
        self.skipped = 0
        self.elapsed = Elapsed(time.monotonic(), time.monotonic())
        self.average: dict[str, torch.Tensor] | None = None
        """The moving average of the trained weights in float64, by name, where there is one."""
        self.pause: int | None = None
        """The step at which the run pauses, before its last one."""
        self.rows_at_once: int | None = None
        """Rows that fit into memory at once; None if a whole batch does."""
        self.resumed: dict[str, Any] = {}
        self.saved_at = -1
        self.samples: list[Batch] = []
        """The micro-batches of the step."""
        self.begun = 0
        """The number of micro-batches that have begun."""
        if sharding:
            sharding.shard(network, self.args.device, self.args.world_size)
            self.is_distributed_loading_by_transformers = True  # Trainer leaves such a model as it is

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """A device need not hold the whole of a model that is sharded."""
        if self.sharding is None:
            super()._move_model_to_device(model, device)

    # --- a step

    def get_train_dataloader(self) -> Any:
        """Whole batches, which know of processes and epochs themselves: accelerate has nothing to add to them."""
        if isinstance(self.batches, Stream):
            return self.batches
        return Loader(
            self.batches.examples,  # type: ignore[arg-type]  # a map-style dataset by its methods
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.accelerator.is_available(),
        )

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """The micro-batches of a step, unless the run ends before it. Raises Stopped, Finished."""
        if self.state.global_step >= (self.pause or self.state.max_steps):
            raise Finished
        self.stop_together()
        self.finish_save(wait=False)
        samples, items = super().get_batch_samples(*arguments, **options)
        self.samples, self.begun = samples, 0
        self.finite = torch.ones_like(self.finite)
        return samples, items

    def stop_together(self) -> None:
        """Raise Stopped if this process, or another process of the run, received a request to stop."""
        signals.check()
        if self.several:
            requested = torch.tensor(int(signals.received() is not None), device=self.accelerator.device)
            if self.accelerator.reduce(requested) > 0:
                signals.stop_together(SIGTERM)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward. Out of memory, the step restarts with half the rows at once and the same loss."""
        signals.check()
        if self.begun == 0:
            self.start = self._snapshot()
        self.begun += 1
        batches = [inputs]
        while True:
            losses = []
            try:
                for batch in batches:
                    parts = []
                    for part, synced in self._parts(model, batch):
                        with synced:
                            parts.append(super().training_step(model, self.concatenated(part), num_items_in_batch))
                    losses.append(torch.stack(parts).sum() if len(parts) > 1 else parts[0])
                return sum(losses)  # type: ignore[return-value]  # a tensor: there is at least one batch
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Only here are the exception and the tensors that its frames hold gone.
            batches = self.samples[: self.begun]
            self._halve(model, batches)

    def _parts(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
        """(a part of the batch that fits into memory, its context): gradients are synchronised with the last part."""
        rows = self.rows_at_once
        parts = out_of_memory.split_batch(batch, rows, self.data_collator.fixed) if rows else [batch]
        for number, part in enumerate(parts, 1):
            yield part, nullcontext() if number == len(parts) else self.accelerator.no_sync(model)

    def concatenated(self, batch: Batch) -> Batch:
        """The batch as the model reads it. Called while it is on the CPU: reading lengths needs no sync."""
        return self.padding_free(self.model, batch) if self.padding_free else batch

    def _halve(self, model: nn.Module, batches: list[Batch]) -> None:
        """Go back to the start of the step, with half the rows at once. Raises OutOfMemory if it was a single row."""
        most = max(len(batch["labels"]) for batch in batches)
        rows = min(self.rows_at_once or most, most)
        if rows == 1:
            raise OutOfMemory(out_of_memory.advice(self.model, batches[-1], str(self.args.optim)))
        if self.several:
            raise OutOfMemory(
                f"out of memory with {rows} rows at once; the same loss with less memory: --batch-size "
                f"{rows // 2} --grad-accum {self.args.gradient_accumulation_steps * 2}"
            )
        self.rows_at_once = -(-rows // 2)
        self.warn(
            f"out of memory with {rows} rows at once at step {self.state.global_step + 1}: continuing with "
            f"{self.rows_at_once}; a step has as many rows as before, and the same loss"
        )
        memory.free_device_memory()
        model.zero_grad()
        training_state.set_random_state(self.start.random)
        self.tokens.copy_(self.start.tokens)
        self._tr_loss.copy_(self.start.loss)
        self.finite = torch.ones_like(self.finite)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The share of this micro-batch in the exact loss of the step."""
        self._count(inputs["attention_mask"], inputs["labels"] != IGNORED)
        loss = self.token_loss(model, inputs, num_items_in_batch)
        self.finite &= torch.isfinite(loss.detach())
        # DistributedDataParallel averages gradients over the processes; the exact loss wants their sum.
        return loss * self.accelerator.num_processes

    def _count(self, mask: torch.Tensor, labels: torch.Tensor) -> None:
        blank = (mask.sum(1) == 1) & ~labels.any(1)
        decoded, more = (labels.sum(), labels.numel()) if self.model.config.is_encoder_decoder else (0, 0)
        slots = torch.full_like(blank.sum(), mask.numel() + more)
        self.tokens += torch.stack([mask.sum() - blank.sum() + decoded, labels.sum(), slots])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return self.grad_norm

    def is_finite(self) -> tuple[bool, bool]:
        """Whether (the loss, the norm of the gradient) of this step are finite, on all processes.

        In half precision a gradient may overflow while the scale of the loss is still being found.
        """
        loss = self.finite.to(torch.int64)
        if self.several:
            loss = self.accelerator.reduce(loss) // self.accelerator.num_processes
        norm = torch.as_tensor(self.grad_norm)
        scaler = getattr(self.accelerator, "scaler", None)
        return bool(loss), bool(torch.isfinite(norm)) if scaler is None else scaler.get_scale() > 1e-4

    def skip_update(self) -> None:
        """Undo this step: no parameter, no moment of the optimiser and no logged loss changes."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self._tr_loss.copy_(self.start.loss)
        self.skipped += 1

    # --- between two steps

    def _snapshot(self) -> StepSnapshot:
        stream = self.batches.state if isinstance(self.batches, Stream) else None
        return StepSnapshot(training_state.random_state(), self.tokens.clone(), self._tr_loss.detach().clone(), stream)

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        self.step_end = self._snapshot()
        super()._maybe_log_save_evaluate(*arguments, **options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The exact evaluation, in place of Trainer's mean of batch means; callbacks see it as usual.

        It leaves the random state of training as it was. Raises Stopped.
        """
        assert self.evaluator
        self.stop_together()
        self.take_weights_to_use()
        before = training_state.random_state()
        # Before the first step only likelihoods: an untrained model's outputs say nothing, and it seldom stops.
        self.scores = self.evaluator.run(self.model, self.accelerator, generate=self.state.global_step > 0)
        logs = {trainer_name(name): value for name, value in self.scores.values.items()}
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        training_state.set_random_state(before)
        return logs

    def take_weights_to_use(self) -> None:
        """Let a schedule-free optimiser put its average into the model; the next step takes its own weights back.

        Defazio et al.: "The Road Less Scheduled", 2024, section 2.
        """
        if callable(average := getattr(self.optimizer, "eval", None)):
            average()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and start_time is not None:
            seconds = time.time() - start_time
            logs["tokens_per_second"] = int(self.tokens[0]) * self.args.world_size / max(seconds, 1e-9)
            self.step_end = replace(self.step_end, loss=self._tr_loss.detach().clone())  # the sum starts again
        super().log(logs, start_time)
