"""The sections `train` and `run`: training settings, and where and how to run."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from lmtrain.config.averaging import Average, parse_average
from lmtrain.config.options import Section, option
from lmtrain.config.values import Every, Strings, duration

SKIPS = 10
"""Maximum number of updates that `--on-nonfinite skip` skips."""

SHARDABLE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers, by their names in transformers, whose state has the shape of the parameters."""


class Train(Section):
    """Also accepts every other field of transformers' TrainingArguments, under its own name."""

    model_config = ConfigDict(extra="allow")

    epochs: float = option(3.0, aliases=("num_train_epochs",), gt=0)
    """Number of training epochs."""
    max_steps: int | None = option(None, ge=0)
    """Number of optimizer steps; takes precedence over --epochs. 0 only evaluates."""
    max_time: Annotated[float, BeforeValidator(duration), Field(gt=0)] | None = option(None)
    """Maximum training time: 90s, 30m, 2h."""
    learning_rate: float | None = option(None, aliases=("lr",), gt=0)
    """Peak learning rate. Default: 5e-5, with --lora 2e-4, from scratch 5e-4; for T5 models 1e-4, 1e-3 and 1e-3."""
    batch_size: int = option(8, short="b", aliases=("per_device_train_batch_size",), ge=1, le=1_000_000)
    """Rows per device and micro-batch."""
    batch_tokens: int | None = option(None, ge=1)
    """Fill each batch to about N tokens; padded rows are grouped by length. Replaces --batch-size."""
    group_by_length: bool = option(False, hidden=True)
    """Batch rows of similar length: less padding, but less varied batches."""
    grad_accum: int = option(1, aliases=("gradient_accumulation_steps",), ge=1)
    """Micro-batches per optimizer step; the loss does not depend on it."""
    warmup_steps: float = option(0.0, ge=0, hidden=True)
    """Warmup steps; a value below 1 is a fraction of all steps."""
    lr_scheduler: str = option("linear", aliases=("lr_scheduler_type",), hidden=True)
    """Learning rate schedule: linear, cosine, constant, constant_with_warmup, …"""
    weight_decay: float = option(0.0, ge=0, hidden=True)
    """Weight decay of AdamW."""
    optim: str = option("adamw_torch_fused", hidden=True)
    """Optimizer, by its name in transformers."""
    max_grad_norm: float = option(1.0, ge=0, hidden=True)
    """Maximum gradient norm; 0 disables clipping."""
    label_smoothing: float = option(0.0, aliases=("label_smoothing_factor",), ge=0, lt=1, hidden=True)
    """Label smoothing of the training loss; never applied in evaluation."""
    seed: int = option(42, ge=0, use="Seed of masks and sampling.")
    """Seed of the split, the data order, the initial weights and the masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", shortcuts={"bf16": "bf16", "fp16": "fp16"})
    """auto is bf16 on GPUs that support it, otherwise fp32."""
    compile: bool = option(False, aliases=("torch_compile",), hidden=True)
    """Compile the model with torch.compile."""
    kernels: Literal["auto", "off"] = option("auto", hidden=True)
    """auto: faster dropout on a CPU, and a fused GELU; off: only the functions of torch and transformers."""
    gradient_checkpointing: bool = option(False)
    """Recompute activations in the backward pass: less memory for about a third more time."""
    log_every: int = option(10, aliases=("logging_steps",), ge=1, hidden=True)
    """Steps between log entries."""
    save_every: Every = option("epoch", aliases=("save_steps",), hidden=True)
    """Steps between checkpoints, or 'epoch'."""
    keep: int = option(2, aliases=("save_total_limit",), ge=1, hidden=True)
    """Number of checkpoints to keep, including the best one."""
    average: str | None = option(None, hidden=True)
    """Try averaged weights at the end: last:N, the mean of the last N checkpoints, or ema:DECAY, a moving average over the steps, e.g. ema:0.999."""
    average_keep: Literal["better", "always"] = option("better", hidden=True)
    """With --average: keep the average only if it is better by --best-metric, or always."""
    on_nonfinite: str = option("stop", pattern=r"^(stop|skip([ :=]\d+)?)$", hidden=True)
    """Loss or gradient that is not finite: stop before the update, or 'skip N' to skip up to N updates."""
    report_to: Strings = option(["none"], hidden=True)
    """Experiment trackers: tensorboard, wandb, trackio, … or none. Repeatable."""

    @model_validator(mode="after")
    def _average_is_known(self) -> Self:
        try:
            parse_average(self.average)
        except ValueError as error:
            raise ValueError(f"--average {self.average}: {error}") from None
        if self.average and self.optim.startswith("schedule_free"):
            raise ValueError(f"--average: {self.optim} averages the weights itself; leave out one of the two")
        if self.average_keep == "always" and not self.average:
            raise ValueError("--average-keep: only with --average")
        return self

    @property
    def averaging(self) -> Average | None:
        """What is averaged; None without --average."""
        return parse_average(self.average)

    @property
    def checkpoints_kept(self) -> int:
        """Checkpoints that stay: at least those of which the mean is taken, and the best one."""
        return max(self.keep, self.averaging.checkpoints + 1) if self.averaging else self.keep

    @property
    def fast_kernels(self) -> bool:
        """Whether faster implementations may replace functions of the model."""
        return self.kernels == "auto"

    @property
    def skips(self) -> int:
        """Maximum number of updates to skip because their loss or gradient is not finite."""
        number = self.on_nonfinite.removeprefix("skip").strip(" :=")
        return 0 if self.on_nonfinite == "stop" else int(number or SKIPS)


class Run(Section):
    output_dir: str | None = option(None, short="o")
    """Run folder. Default: runs/<objective>-<model>-<time>."""
    resume: str | None = option(None, aliases=("resume_from_checkpoint",))
    """Resume from a checkpoint: a path, or auto for the newest one in --output-dir."""
    overwrite: bool = option(False)
    """Replace the run in --output-dir."""
    stop_at: float | None = option(None, gt=0, hidden=True)
    """Pause after this step, or this share of all steps if below 1: evaluate, save a checkpoint and end. --resume auto goes on."""
    allow_drift: Strings = option([], hidden=True)
    """With --resume or --baseline: go on although this differs, e.g. learning_rate or data.eval. Repeatable."""
    preflight: bool | None = option(None, hidden=True)
    """Before training, try the largest batch, evaluation, generation, saving and loading. Default: from 1,000 steps on."""
    num_processes: int | None = option(None, ge=1)
    """Number of processes to start, one per GPU (or on the CPU); see also --shard and --nodes."""
    nodes: int | None = option(None, ge=1, hidden=True)
    """Number of hosts that train together; run the same command on each. SLURM's tasks need none of this."""
    node_rank: int | None = option(None, ge=0, hidden=True)
    """With --nodes: the number of this host, from 0. Host 0 writes the run folder. Default: JOB_COMPLETION_INDEX."""
    rendezvous: str | None = option(None, pattern=r"^[^\s:/]+:\d+$|^\[[\da-fA-F:]+\]:\d+$", hidden=True)
    """With --nodes: where the hosts meet, HOST:PORT; HOST is host 0."""
    max_restarts: int = option(0, ge=0, hidden=True)
    """How often the processes start again, from the newest checkpoint, after one has failed."""
    shard: Literal["none", "fsdp2", "zero2", "zero3"] = option("none", hidden=True)
    """fsdp2: each process holds a part of the weights, gradients and optimizer state; for models too large for one device. zero2, zero3: by DeepSpeed."""
    shard_offload: bool = option(False, hidden=True)
    """With --shard: hold the parts in CPU memory."""
    async_save: bool = option(False, hidden=True)
    """With --shard fsdp2: write checkpoints while training goes on. Each needs memory for a copy of the parts."""
    dist_timeout: Annotated[float, BeforeValidator(duration), Field(gt=0)] = option(600.0, hidden=True)
    """How long processes wait for one that does not answer: 90s, 10m, 1h."""
    accelerate_config: str | None = option(None, hidden=True)
    """Launch the processes as configured in this file of `accelerate config`."""
    license: str | None = option(None, hidden=True)
    """Licence of the model for its card, by its name on the hub: apache-2.0, cc-by-4.0, other, …"""
    language: Strings = option([], hidden=True)
    """Language of the data for the model card, as a code: en, ko, … Repeatable."""
    offline: bool = option(False)
    """Never contact the Hugging Face Hub; use local files only."""
    cache: bool = option(
        True, hidden=True, off="Tokenize again and store nothing. By default tokenized data is cached."
    )
    """Reuse the tokenized data of earlier runs."""
    cache_dir: str | None = option(None, hidden=True)
    """Cache folder. Default: $XDG_CACHE_HOME/lmtrain or ~/.cache/lmtrain."""
    num_proc: int | None = option(None, ge=1, aliases=("preprocessing_num_workers",), hidden=True)
    """Number of tokenization threads. Default: one per core."""
