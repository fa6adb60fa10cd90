"""The sections `train` and `run`: how a model is trained, and where the run goes."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from lmtrain.config.options import Section, option
from lmtrain.config.values import Every, Strings, duration

SKIPS = 10
"""Updates that `--on-nonfinite skip` leaves out at most."""


class Train(Section):
    """Also takes any other field of transformers' TrainingArguments under its own name."""

    model_config = ConfigDict(extra="allow")

    epochs: float = option(3.0, aliases=("num_train_epochs",), gt=0)
    """Times through the data."""
    max_steps: int | None = option(None, ge=0)
    """Optimiser steps, whatever --epochs says; 0 only evaluates."""
    max_time: Annotated[float, BeforeValidator(duration), Field(gt=0)] | None = option(None)
    """Stop after this long: 90s, 30m, 2h."""
    learning_rate: float | None = option(None, aliases=("lr",), gt=0)
    """Peak learning rate. Default: 5e-5, with --lora 2e-4, from scratch 5e-4; for T5's family 1e-4, 1e-3 and 1e-3."""
    batch_size: int = option(8, short="b", aliases=("per_device_train_batch_size",), ge=1, le=1_000_000)
    """Rows per device and micro-batch."""
    batch_tokens: int | None = option(None, ge=1)
    """Rows vary so that a batch has about N tokens; rows that have to be padded are of like length. Instead of --batch-size."""
    group_by_length: bool = option(False, hidden=True)
    """Batches of rows of like length: less padding, but a step teaches less."""
    grad_accum: int = option(1, aliases=("gradient_accumulation_steps",), ge=1)
    """Micro-batches per optimiser step; the loss does not depend on it."""
    warmup_steps: float = option(0.0, ge=0, hidden=True)
    """Steps of rising learning rate; below 1: a share of all steps."""
    lr_scheduler: str = option("linear", aliases=("lr_scheduler_type",), hidden=True)
    """linear, cosine, constant, constant_with_warmup, …"""
    weight_decay: float = option(0.0, ge=0, hidden=True)
    """AdamW's weight decay."""
    optim: str = option("adamw_torch_fused", hidden=True)
    """Optimiser, by transformers' names."""
    max_grad_norm: float = option(1.0, ge=0, hidden=True)
    """Clip the gradient's norm; 0: never."""
    label_smoothing: float = option(0.0, aliases=("label_smoothing_factor",), ge=0, lt=1, hidden=True)
    """Label smoothing of the training loss; evaluation is never smoothed."""
    seed: int = option(42, ge=0, use="Decides masks and what is drawn.")
    """Decides the split, the order, the weights and the masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", shortcuts={"bf16": "bf16", "fp16": "fp16"})
    """auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = option(False, aliases=("torch_compile",), hidden=True)
    """Compile the model with torch.compile."""
    kernels: Literal["auto", "off"] = option("auto", hidden=True)
    """auto: faster dropout on a CPU and GELU in one pass; off: the functions of torch and transformers alone."""
    gradient_checkpointing: bool = option(False)
    """Less memory for about a third more time."""
    log_every: int = option(10, aliases=("logging_steps",), ge=1, hidden=True)
    """Steps between two lines of the log."""
    save_every: Every = option("epoch", aliases=("save_steps",), hidden=True)
    """Steps between two checkpoints, or 'epoch'."""
    keep: int = option(2, aliases=("save_total_limit",), ge=1, hidden=True)
    """Checkpoints to keep, the best one among them."""
    on_nonfinite: str = option("stop", pattern=r"^(stop|skip([ :=]\d+)?)$", hidden=True)
    """A loss or gradient that is no finite number: stop before the update, or 'skip N': leave out up to N updates."""
    report_to: Strings = option(["none"], hidden=True)
    """Trackers: tensorboard, wandb, trackio, … or none. Repeatable."""

    @property
    def fast_kernels(self) -> bool:
        """Whether functions of the model may be replaced by faster ones."""
        return self.kernels == "auto"

    @property
    def skips(self) -> int:
        """Updates that may be left out because their loss or gradient is not finite."""
        number = self.on_nonfinite.removeprefix("skip").strip(" :=")
        return 0 if self.on_nonfinite == "stop" else int(number or SKIPS)


class Run(Section):
    output_dir: str | None = option(None, short="o")
    """Run folder. Default: runs/<objective>-<model>-<time>."""
    resume: str | None = option(None, aliases=("resume_from_checkpoint",))
    """Go on from a checkpoint: auto (the newest in --output-dir) or a path."""
    overwrite: bool = option(False)
    """Replace the run that is in --output-dir."""
    allow_drift: Strings = option([], hidden=True)
    """With --resume: go on though this has changed, e.g. train.learning_rate. Repeatable."""
    preflight: bool | None = option(None, hidden=True)
    """Before training try the largest batch, evaluation, generation, saving and loading. Default: from 1,000 steps on."""
    num_processes: int | None = option(None, ge=1)
    """Start this many processes, one per GPU (or on the CPU)."""
    accelerate_config: str | None = option(None, hidden=True)
    """Launch as this file of `accelerate config` says."""
    offline: bool = option(False)
    """Never ask the hub; use what is on this machine."""
    cache: bool = option(True, hidden=True)
    """Keep tokenised data for the next run on them; --no-cache: tokenise anew, keep nothing."""
    cache_dir: str | None = option(None, hidden=True)
    """Where. Default: $XDG_CACHE_HOME/lmtrain or ~/.cache/lmtrain."""
    num_proc: int | None = option(None, ge=1, aliases=("preprocessing_num_workers",), hidden=True)
    """Threads that tokenise. Default: one a core."""
