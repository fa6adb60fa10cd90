"""Averaged weights: the mean of the last checkpoints, or an exponential moving average over the steps.

Of checkpoints: Vaswani et al., "Attention Is All You Need", 2017, section 6.1. Over the steps: Polyak and Juditsky, 1992. Both
are tried at the end of the run on the evaluation data, in place of the weights that would be kept.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from lmtrain.config.averaging import EMA, Average
from lmtrain.config.recipe import Recipe
from lmtrain.evaluation.scores import Scores
from lmtrain.metrics import higher_is_better
from lmtrain.runs import checkpoint
from lmtrain.runtime.console import format_number
from lmtrain.training.callbacks import RunCallback
from lmtrain.training.hosts import of_first
from lmtrain.training.trainer import ExactTrainer

Weights = dict[str, torch.Tensor]


class MovingAverage(TrainerCallback):
    """Averages the trained weights after every step; it is part of each checkpoint."""

    def __init__(self, trainer: ExactTrainer, decay: float):
        self.trainer, self.decay = trainer, decay

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Average = decay · average + (1 - decay) · weights, in float64; the first step begins with its weights."""
        now = {name: p.detach().double() for name, p in trained(self.trainer).items()}
        before = self.trainer.average
        if before is None:
            self.trainer.average = now
            return
        for name, weights in now.items():
            before[name] = before[name].to(weights.device).lerp_(weights, 1 - self.decay)


def trained(trainer: ExactTrainer) -> Weights:
    """The parameters that training changes, by name; tied ones once."""
    return {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}


def try_average(
    recipe: Recipe, trainer: ExactTrainer, run: RunCallback, scores: Scores | None
) -> tuple[Scores | None, dict[str, Any]]:
    """Put the average into the model if it is better, or wanted always; (the scores of the model, what results.json says)."""
    average = recipe.train.averaging
    if average is None or run.stopped_by or run.paused or not trainer.state.global_step:
        return scores, {}
    kept = {name: p.detach().clone() for name, p in trained(trainer).items()}
    steps = _load_average(average, trainer, run)
    found = run.evaluator.run(trainer.model, trainer.accelerator) if run.evaluator else None
    name = recipe.eval.best_metric
    takes = found is None or scores is None or recipe.train.average_keep == "always"
    if not takes and found and scores:
        takes = is_better(found.values.get(name), scores.values.get(name), name)
    if not takes:
        _put(trainer, kept)
    values = {"before": scores.values.get(name), "average": found.values.get(name)} if found and scores else {}
    shown = " → ".join(format_number(value) for value in values.values() if value is not None)
    of_steps = f" of steps {', '.join(f'{step:,}' for step in steps)}" if steps else ""
    fate = "kept" if takes else "not better, so it is not kept"
    run.console.note(f"average {recipe.train.average}{of_steps}: {name} {shown}: {fate}" if shown else
                     f"average {recipe.train.average}{of_steps}: {fate}")  # fmt: skip
    document = {"method": recipe.train.average, "steps": steps, "metric": name, **values, "kept": takes}
    return (found if takes else scores), {"averaging": document}


def is_better(value: float | None, than: float | None, metric: str) -> bool:
    """Whether a value of a metric is better than another one; False where one is missing."""
    if value is None or than is None:
        return False
    return value > than if higher_is_better(metric) else value < than


def _load_average(average: Average, trainer: ExactTrainer, run: RunCallback) -> list[int]:
    """Put the average into the model; the steps of the checkpoints that it is the mean of."""
    if average.kind == EMA:
        assert trainer.average is not None, "a step was made"
        _put(trainer, trainer.average)
        return []
    steps = of_first(last_steps(run.folder.checkpoints, average.checkpoints))
    if len(steps) < average.checkpoints:
        run.console.warn(f"--average {average.kind}:{average.checkpoints}: only {len(steps)} checkpoints are there")
    with tempfile.TemporaryDirectory(prefix="lmtrain-average-") as folder:
        mean_of_checkpoints([checkpoint.path_of(run.folder.checkpoints, step) for step in steps], Path(folder))
        trainer.state.best_model_checkpoint = folder
        trainer._load_best_model()
    return steps


def last_steps(checkpoints: Path, count: int) -> list[int]:
    """The steps of the last intact checkpoints, at most `count`."""
    steps = sorted(step for path in checkpoints.glob("checkpoint-*") if (step := checkpoint.step_of(path)) >= 0)
    return [step for step in steps if not checkpoint.damage(checkpoint.path_of(checkpoints, step))][-count:]


def mean_of_checkpoints(folders: Sequence[Path], target: Path) -> None:
    """Write a folder like the newest checkpoint, with the arithmetic mean of the weights of all, computed in float64."""
    newest = folders[-1]
    for file in newest.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name.endswith((".json", ".txt", ".model")):
            shutil.copyfile(file, target / file.name)
    for file in [path for path in newest.glob("*.safetensors") if "model" in path.name]:
        readers = [safe_open(folder / file.name, "pt") for folder in folders]
        means = {name: _mean([reader.get_tensor(name) for reader in readers]) for name in readers[-1].keys()}  # noqa: SIM118
        save_file(means, target / file.name, metadata={"format": "pt"})


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[-1].dtype).contiguous()


@torch.no_grad()
def _put(trainer: ExactTrainer, weights: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in trained(trainer).items():
        parameter.copy_(weights[name])
