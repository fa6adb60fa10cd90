"""`lmtrain bench`: the speed of a training on this machine, measured over some of its steps."""

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.errors import UsageError
from lmtrain.modeling.loss import evaluating
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment
from lmtrain.runtime.memory import peak_memory
from lmtrain.training.assembly import assemble
from lmtrain.training.run import stepping
from lmtrain.training.trainer import ExactTrainer

WARM = 3
"""Warm-up steps, which are not counted: memory is allocated and kernels are chosen."""

MUCH_PADDING = 0.15
"""Padding fraction from which on a remedy is suggested."""


class Clock(TrainerCallback):
    """Records the time and the token counts at the end of each step; stops the training after `seconds`.

    It cancels evaluations and saves that earlier callbacks requested.
    """

    def __init__(self, trainer: ExactTrainer, seconds: float):
        self.trainer, self.seconds = trainer, seconds
        self.ends: list[float] = []
        self.first = 0.0
        self.seen: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())
        self.first = self.first or time.time() - psutil.Process().create_time()
        self.seen.append(self.trainer.tokens.clone())
        over = self.ends[-1] - self.ends[min(WARM, len(self.ends)) - 1] >= self.seconds
        control.should_training_stop |= over and len(self.ends) > WARM
        control.should_evaluate = control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = control.should_save = False


def bench(recipe: Recipe, corpus: Corpus, seconds: float, console: Console) -> dict[str, Any]:
    """Train for about `seconds` and return the measurements; nothing is saved. Raises as training does, and UsageError."""
    if recipe.train.max_steps == 0:
        raise UsageError("--max-steps 0 takes no step that could be measured")
    train_section = recipe.train.model_copy(update={"report_to": []})
    run_section = recipe.run.model_copy(update={"resume": None, "overwrite": False})
    recipe = recipe.model_copy(update={"train": train_section, "run": run_section})
    with tempfile.TemporaryDirectory() as folder:
        trainer = assemble(recipe, corpus, RunFolder(Path(folder)), ResumePoint(), console, saved=False).trainer
        trainer.args.eval_on_start = False
        clock = Clock(trainer, seconds)
        trainer.add_callback(clock)
        rate = matrix_rate(trainer.args.device, _dtype(trainer.args))
        with console.working(f"training for about {seconds:g} s"), stepping(trainer, recipe):
            trainer.train()
    if len(clock.ends) <= WARM:
        raise UsageError(
            f"the training ends after {len(clock.ends)} steps, and the first {WARM} are not counted; "
            "give more data, --epochs or --max-steps"
        )
    return _measurements(recipe, trainer, clock, rate)


def _measurements(recipe: Recipe, trainer: ExactTrainer, clock: Clock, rate: float) -> dict[str, Any]:
    counted = clock.ends[WARM - 1 :]
    elapsed, steps = counted[-1] - counted[0], len(counted) - 1
    tokens, _, slots = (clock.seen[-1] - clock.seen[WARM - 1]).tolist()
    arithmetic = flops_per_token(trainer) * tokens / elapsed
    return {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "steps": steps,
        "tokens_per_second": tokens / elapsed,
        "step_seconds": statistics.median(b - a for a, b in pairwise(counted)),
        "padding_fraction": 1 - tokens / slots,
        "peak_memory_bytes": peak_memory(),
        "flops_per_second": arithmetic,
        "matrix_flops_per_second": rate,
        "share_of_matrix_rate": arithmetic / rate,
        "first_step_seconds": clock.first,
        "training_steps": trainer.state.max_steps,
        "training_seconds": trainer.state.max_steps * elapsed / steps,
        "environment": environment(trainer.args.world_size, recipe.train.seed),
    }


def flops_per_token(trainer: ExactTrainer) -> float:
    """Multiplications and additions in the matrix products of forward and backward, per token, one of padding included.

    Counted in a forward pass over the last step's batches: backward takes two products for each of forward's. Attention
    counts in full, also where half of it is masked, as is usual (PaLM, Chowdhery et al. 2022, appendix B). Texts of a
    padding-free batch count as in rows of their own: none attends to another.
    """
    device, before = trainer.args.device, trainer.tokens.clone()
    trainer.tokens.zero_()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), evaluating(trainer.model):
        for batch in trainer.samples:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            predicted = (on_device["labels"] != IGNORED).sum()
            with torch.no_grad(), trainer.compute_loss_context_manager():
                trainer.compute_loss(trainer.model, on_device, num_items_in_batch=predicted)
    slots = int(trainer.tokens[2])
    trainer.tokens.copy_(before)
    return 3 * counter.get_total_flops() / max(slots, 1)


def _dtype(arguments: Any) -> torch.dtype:
    """The dtype of the matrix products in training."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions per second of a large product of square matrices, the best of several."""
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        matrix @ matrix
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def show(found: dict[str, Any], console: Console) -> None:
    """Print the measurements as a table, or as JSON with --json."""
    hours, minutes = divmod(int(found["training_seconds"]) // 60, 60)
    rows = [
        ("tokens a second, without padding", f"{found['tokens_per_second']:,.0f}"),
        ("seconds a step", f"{found['step_seconds']:.3g} (median of {found['steps']})"),
        ("padding", f"{found['padding_fraction']:.1%}"),
        ("peak memory", f"{found['peak_memory_bytes'] / 1e9:.2f} GB"),
        (
            "arithmetic",
            f"{found['flops_per_second'] / 1e9:,.0f} GFLOP/s, {found['share_of_matrix_rate']:.0%} of the "
            f"{found['matrix_flops_per_second'] / 1e9:,.0f} of a large product of matrices",
        ),
        ("from the command to the first step", f"{found['first_step_seconds']:.1f} s"),
        ("the whole training", f"{found['training_steps']:,} steps, about {hours} h {minutes:02} min"),
    ]
    console.result(found, rows, title=f"{found['objective']}: {found['model']}")
    if found["padding_fraction"] > MUCH_PADDING:
        packing = "" if found["objective"] == "classify" else "--packing puts several texts into a row; "
        console.note(
            f"much of each batch is padding: {packing}--group-by-length avoids padding, but a step then teaches less"
        )
