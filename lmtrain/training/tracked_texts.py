"""Gives experiment trackers what Trainer does not: the recipe, and the samples that the model writes.

Figures reach them through Trainer's own callbacks. A tracker that is not here gets the figures alone.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from lmtrain.config.loading import to_yaml
from lmtrain.config.recipe import Recipe
from lmtrain.runtime.redaction import redact_document

Samples = Sequence[dict[str, Any]]


class TrackedTexts(TrainerCallback):
    """Sends texts to the trackers that Trainer has started."""

    def __init__(self, recipe: Recipe, callbacks: Sequence[Any]):
        self.recipe = recipe
        names = {type(callback).__name__: callback for callback in callbacks}
        known: dict[str, Any] = {
            "TensorBoardCallback": _TensorBoard,
            "WandbCallback": _Wandb,
            "TrackioCallback": _Trackio,
            "MLflowCallback": _MLflow,
        }
        self.trackers: list[Any] = [adapter(names[name]) for name, adapter in known.items() if name in names]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            text = to_yaml(redact_document(self.recipe.saved({})))
            for tracker in self.trackers:
                tracker.recipe(text)

    def samples(self, step: int, samples: Samples) -> None:
        for tracker in self.trackers:
            tracker.samples(step, redact_document(samples))


class _TensorBoard:
    def __init__(self, callback: Any):
        self.callback = callback

    def recipe(self, text: str) -> None:
        if writer := self.callback.tb_writer:
            writer.add_text("recipe", f"```yaml\n{text}```")

    def samples(self, step: int, samples: Samples) -> None:
        if writer := self.callback.tb_writer:
            texts = ("\n\n".join(f"**{name}** {text}" for name, text in sample.items()) for sample in samples)
            writer.add_text("samples", "\n\n---\n\n".join(texts), step)


class _Wandb:
    def __init__(self, callback: Any):
        self.wandb = callback._wandb

    def recipe(self, text: str) -> None:
        if self.wandb and self.wandb.run:
            self.wandb.config.update({"recipe": text}, allow_val_change=True)

    def samples(self, step: int, samples: Samples) -> None:
        if self.wandb and self.wandb.run and samples:
            columns = list(samples[0])
            rows = [[str(sample.get(name, "")) for name in columns] for sample in samples]
            self.wandb.log({"samples": self.wandb.Table(columns=columns, data=rows), "train/global_step": step})


class _Trackio:
    def __init__(self, callback: Any):
        self.trackio = callback._trackio

    def recipe(self, text: str) -> None:
        self.trackio.config.update({"recipe": text}, allow_val_change=True)

    def samples(self, step: int, samples: Samples) -> None:
        if samples:
            columns = list(samples[0])
            rows = [[str(sample.get(name, "")) for name in columns] for sample in samples]
            self.trackio.log({"samples": self.trackio.Table(columns=columns, data=rows), "train/global_step": step})


class _MLflow:
    def __init__(self, callback: Any):
        self.mlflow = callback._ml_flow

    def recipe(self, text: str) -> None:
        if self.mlflow.active_run():
            self.mlflow.log_text(text, "recipe.yaml")

    def samples(self, step: int, samples: Samples) -> None:
        if self.mlflow.active_run():
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            self.mlflow.log_text(lines, f"samples/step-{step}.jsonl")
