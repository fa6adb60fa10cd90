"""The Trainer callback that notices a training that cannot work, and names the cause.

A fault that is certain stops the run: nothing is learnt from labels that are all masked, from a gradient that is exactly
zero or with weights that do not change. A course that looks wrong is a warning, once: a loss that rises, a loss that stays
at chance, an evaluation that gets worse while the training gets better.
"""

import math
from typing import Any

import torch
from transformers import TrainerCallback

from lmtrain.errors import BrokenDown, InputError
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.training.trainer import ExactTrainer

WATCHED = 3
"""The first steps of a process, whose gradients are examined."""

UNCHANGED = 10
"""Steps without a change of the weights that stop the run. RAdam makes no update in its first five (Liu et al. 2020)."""

LABEL_STEPS, ENOUGH_LABELS, MISPLACED = 50, 100, 0.85
"""Labels are examined until so many were, at most for so many steps; from this share on they are called misplaced.

Of masked tokens that are shown half are replaced, so that the share is 0.5; 85 of 100 by chance has a probability of 1e-13.
"""

CHANCE_STEPS = 500
"""Steps after which a loss at chance is reported."""

RISE = 1.0
"""Nats per token above the first loss from which a loss is called diverging."""

WORSE = 3
"""Evaluations in a row that are worse than the best one, from which on overfitting is reported."""

MARGIN = 0.005
"""Relative difference below which two evaluations count as equal."""


class Health(TrainerCallback):
    """Raises BrokenDown where training cannot be working, and warns where it seems not to be."""

    def __init__(self, trainer: ExactTrainer, objective: Objective):
        self.trainer, self.objective = trainer, objective
        self.watched = self.without_gradient = self.unchanged = self.misplaced = self.examined = 0
        self.without_labels = 0
        self.before: torch.Tensor | None = None
        self.skipped = 0
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        self.warned: set[str] = set()

    # --- the first steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.skipped = self.trainer.skipped
        if not any(parameter.requires_grad for parameter in self.trainer.model.parameters()):
            raise InputError(
                "no parameter of the model is trained: all of them are frozen (requires_grad is False); unfreeze some, or use "
                "--lora, which adds parameters of its own"
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.examined < ENOUGH_LABELS and state.global_step < LABEL_STEPS:
            self._check_places(state.global_step + 1)
        if self.watched >= UNCHANGED or self.trainer.is_deepspeed_enabled:
            return
        if self.skipped != self.trainer.skipped:  # this step changes nothing (--on-nonfinite)
            self.skipped = self.trainer.skipped
            return
        self.watched += 1
        if self.watched == self.unchanged + 1:  # no step has changed them
            self.before = self._checksums()
        if self._is_labelled():
            self._check_gradient()

    def _is_labelled(self) -> bool:
        """Whether the step has a label. Raises BrokenDown if none of the first steps has one; chance may mask nothing."""
        # The share of one of several processes may be blank, at the end of an epoch.
        if self._of_any(any(bool((batch["labels"] != IGNORED).any()) for batch in self.trainer.samples)):
            return True
        self.without_labels += 1
        if self.without_labels == UNCHANGED:
            raise BrokenDown(
                f"every label of the first {UNCHANGED} steps is masked ({IGNORED}), so nothing would be learnt; look at the rows "
                f"with lmtrain preview {self.objective.name}"
            )
        return False

    def _check_gradient(self) -> None:
        """Raise BrokenDown where none of the first steps that have labels has a gradient."""
        if self.watched - self.without_labels > WATCHED:
            return
        gradients = [p.grad for p in self.trainer.model.parameters() if p.requires_grad and p.grad is not None]
        self.without_gradient += not self._of_any(any(bool(_local(gradient).any()) for gradient in gradients))
        if self.without_gradient == WATCHED:
            raise BrokenDown(
                f"the gradient of the first {WATCHED} steps is exactly zero: the loss does not depend on any parameter that is "
                "trained, so nothing would be learnt"
            )

    def _check_places(self, step: int) -> None:
        """Raise BrokenDown where nearly all labels so far cannot be those of the inputs."""
        for batch in self.trainer.samples:
            wrong, examined = self.objective.misplaced_labels(batch, self.trainer.data_collator)
            self.misplaced, self.examined = self.misplaced + wrong, self.examined + examined
        if self.examined >= ENOUGH_LABELS and self.misplaced > MISPLACED * self.examined:
            raise BrokenDown(
                f"the labels of the first {step} steps do not belong to their inputs: they are shuffled or shifted. The fault is in "
                "the collator, not in the data"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.before is None:
            return
        before, self.before = self.before, None
        scaled = getattr(self.trainer.accelerator, "scaler", None) is not None  # the first scales may be too large
        if scaled or self._of_any(not torch.equal(before, self._checksums())):
            return
        self.unchanged += 1
        if self.unchanged == UNCHANGED:
            rate = max(group["lr"] for group in self.trainer.optimizer.param_groups)
            why = (
                "the learning rate is 0"
                if rate == 0
                else f"the updates are too small for the weights' number format at a learning rate of {rate:g}"
            )
            raise BrokenDown(f"the weights did not change in the first {UNCHANGED} steps: {why}")

    def _of_any(self, found: bool) -> bool:
        """Whether this holds in any process."""
        if not self.trainer.several:
            return found
        accelerator = self.trainer.accelerator
        return bool(accelerator.reduce(torch.tensor(int(found), device=accelerator.device)) > 0)

    def _checksums(self) -> torch.Tensor:
        """The sums of the trained parameters [parameters], which an update changes."""
        trained = [_local(p.detach()) for p in self.trainer.model.parameters() if p.requires_grad]
        dtype = torch.float32 if trained[0].device.type == "mps" else torch.float64
        return torch.stack([part.sum(dtype=dtype) + torch.linalg.vector_norm(part, dtype=dtype) for part in trained])

    # --- the course of the run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None or not math.isfinite(loss):
            return
        self.losses.append((state.global_step, loss))
        first, lowest = self.losses[0][1], min(value for _, value in self.losses)
        if loss > first + RISE and loss > 1.5 * lowest:
            self._warn(
                "divergence",
                f"the loss rises: {loss:.2f} at step {state.global_step}, {first:.2f} at the start. The training diverges; lower "
                f"--learning-rate (the peak is {args.learning_rate:g})",
            )
        recent = [value for step, value in self.losses if step > state.global_step - CHANCE_STEPS / 10]
        chance = math.log(max(self.trainer.model.config.get_text_config().vocab_size, 2))
        if state.global_step >= CHANCE_STEPS and min(recent) >= chance:
            self._warn(
                "chance",
                f"after {state.global_step:,} steps the loss is {loss:.2f}, no better than guessing among all tokens ({chance:.2f}): "
                "nothing is learnt. Try another --learning-rate, and look at the rows with lmtrain preview",
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        loss = (metrics or {}).get("eval_loss")
        if loss is None or not math.isfinite(loss):
            return
        self.evaluations.append((state.global_step, loss))
        best_step, best = min(self.evaluations, key=lambda pair: pair[1])
        since = [value for step, value in self.evaluations if step > best_step]
        training = [value for step, value in self.losses if step > best_step]
        worse = len(since) >= WORSE and all(value > best * (1 + MARGIN) for value in since[-WORSE:])
        if worse and len(training) > 1 and training[-1] < training[0]:
            self._warn(
                "overfitting",
                f"eval_loss has been worse for {len(since)} evaluations than at step {best_step} ({best:.4f}; now {loss:.4f}), while "
                f"the training loss falls: the model overfits. --early-stop {WORSE} would stop here; the best model is kept",
            )

    def _warn(self, kind: str, text: str) -> None:
        """Warn once of each kind."""
        if kind not in self.warned:
            self.warned.add(kind)
            self.trainer.warn(text)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds; other tensors whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
