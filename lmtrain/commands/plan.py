"""`lmtrain plan`: what a training would take, before it is started and before weights are read."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

from lmtrain.commands.step_memory import Estimate, Shape, checkpointing, number_of_parameters
from lmtrain.config.architectures import adapter_base
from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.errors import UsageError
from lmtrain.modeling import lora
from lmtrain.modeling.cpu_kernels import fuse_gelu
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.stream import Stream
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import precision
from lmtrain.training.outlined import outline_training
from lmtrain.training.results import checkpoint_bytes

MOST_ROWS = 1 << 16
"""Rows of the largest batch that is looked for."""


def plan(recipe: Recipe, corpus: Corpus, limit: int | None, console: Console) -> dict[str, Any]:
    """What `lmtrain plan --json` prints. `limit`: bytes of memory for the largest batch; None: those of this machine.

    Raises an LmtrainError for whatever the user can put right.
    """
    if recipe.model.load_in_4bit:
        raise UsageError("plan does not know the memory of --load-in-4bit; bench measures it on a GPU")
    processes = recipe.run.num_processes or 1
    outlined = outline_training(recipe, corpus, processes, console)
    model, prepared, batches = outlined.model, outlined.data, outlined.batches
    for line in [*prepared.notes, *model.notes]:
        console.note(line)
    network = _outlined(recipe, model.network, outlined.objective.task_type)
    size = checkpoint_bytes(network)
    dtype = precision(recipe.train.precision, outlined.config.model_type)
    estimate = Estimate(recipe, network, outlined.width, dtype, processes)
    shape = _largest(batches, recipe, network, estimate)
    memory = estimate(shape)
    limit = limit or _available()
    steps, per_epoch = _steps(recipe, batches)
    counts = prepared.train.ledger
    return {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "parameters": number_of_parameters(network, trained=False),
        "trainable_parameters": number_of_parameters(network, trained=True),
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "tokens_per_epoch": counts.tokens_used,
        "evaluations": _evaluations(recipe, steps, per_epoch),
        "largest_batch": {"rows": shape.rows, "length": shape.length, "slots": shape.slots},
        "memory": memory.document(),
        "peak_memory_bytes": memory.peak,
        "memory_limit_bytes": limit,
        "largest_batch_size": _largest_size(shape, lambda rows: estimate(shape.of_rows(rows)).peak, limit),
        "processes": processes,
        "checkpoint_bytes": size,
        "disk_bytes": (recipe.train.keep + 2) * size,
        "precision": dtype,
    }


def _outlined(recipe: Recipe, network: PreTrainedModel, task_type: str | None) -> PreTrainedModel:
    """The network on the meta device as it would be trained: with its adapter, its kernels and its checkpointing."""
    if recipe.train.fast_kernels:
        fuse_gelu(network)
    if recipe.model.lora or adapter_base(recipe.model.name):
        with torch.device("meta"):
            lora.adapt(network, recipe.model, task_type, [], [])
    if recipe.train.gradient_checkpointing:
        checkpointing(network, True)
    return network


def _largest(batches: BatchSampler | Stream, recipe: Recipe, network: PreTrainedModel, estimate: Estimate) -> Shape:
    """The batch of the first epoch that takes the most memory."""
    if isinstance(batches, Stream):
        length = recipe.data.model_dump().get("max_length") or recipe.data.model_dump().get("max_source_length") or 512
        rows = recipe.train.batch_size
        return Shape(rows, length, length, rows * length, rows * length)
    lengths, share = batches.lengths, _supervised_share(batches)
    chosen = np.array([key[1] for key in batches.largest()])
    source = int(lengths[0][chosen].max())
    target = int(lengths[-1][chosen].max()) if len(lengths) > 1 else 0
    slots = batches.most_slots
    read = slots if not network.config.is_encoder_decoder else len(chosen) * target
    return Shape(len(chosen), source, target, slots, max(math.ceil(read * share), 1))


def _supervised_share(batches: BatchSampler) -> float:
    """The share of tokens that have a label."""
    ledger = batches.examples.ledger
    if len(batches.lengths) > 1:  # of the targets all have
        return 1.0
    return min(ledger.tokens_trained / max(ledger.tokens_used, 1), 1.0)


def _largest_size(shape: Shape, peak: Callable[[int], int], limit: int) -> int:
    """The largest power of two rows in a batch whose peak is within the limit; 0 if not even one row is."""
    size = 1
    while size <= MOST_ROWS and peak(size) <= limit:
        size *= 2
    return size // 2


def _available() -> int:
    """Bytes of memory that this process may use in all."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    memory = psutil.virtual_memory()
    return int(memory.available + psutil.Process().memory_info().rss)


# --- the course ------------------------------------------------------------------------------------------------------


def _steps(recipe: Recipe, batches: BatchSampler | Stream) -> tuple[int, int | None]:
    """(optimiser steps of the run, of an epoch); None for a stream."""
    train = recipe.train
    if isinstance(batches, Stream):
        return int(train.max_steps or 0), None
    per_epoch = max(math.ceil(len(batches) / train.grad_accum), 1)
    return (train.max_steps if train.max_steps is not None else math.ceil(train.epochs * per_epoch)), per_epoch


def _evaluations(recipe: Recipe, steps: int, per_epoch: int | None) -> int:
    """How often the evaluation data are scored, before the first step and at the end included."""
    if not recipe.evaluates:
        return 0
    every = recipe.eval.every if isinstance(recipe.eval.every, int) else per_epoch or steps
    return 1 + math.ceil(steps / max(every, 1))


def show(found: dict[str, Any], console: Console) -> None:
    """Print the plan as a table, or as JSON with --json."""
    memory, share = found["memory"], found["trainable_parameters"] / max(found["parameters"], 1)
    rows = [
        ("parameters", f"{found['parameters']:,}, {share:.1%} trained"),
        (
            "steps",
            f"{found['steps']:,}" + (f", {found['steps_per_epoch']:,} an epoch" if found["steps_per_epoch"] else ""),
        ),
        ("tokens per epoch", f"{found['tokens_per_epoch']:,}"),
        ("evaluations", f"{found['evaluations']:,}"),
        ("largest batch", f"{found['largest_batch']['rows']} rows, {found['largest_batch']['slots']:,} token slots"),
        *((f"memory: {name}", _gigabytes(size)) for name, size in memory.items() if size),
        (
            "peak memory" + (" of each process" if found["processes"] > 1 else ""),
            _gigabytes(found["peak_memory_bytes"]),
        ),
        (
            f"largest --batch-size in {_gigabytes(found['memory_limit_bytes'])}",
            str(found["largest_batch_size"] or "none: not even one row fits"),
        ),
        ("a checkpoint", _gigabytes(found["checkpoint_bytes"])),
        ("disk, with --keep", _gigabytes(found["disk_bytes"])),
    ]
    if "seconds" in found:
        rows.append(("time, measured here", f"about {found['seconds'] / 60:,.1f} min"))
    console.result(found, rows, title=f"plan {found['objective']}: {found['model']}")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
