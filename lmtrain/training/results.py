"""The content of results.json, and the model beside it."""

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from lmtrain.config.architectures import is_classifier
from lmtrain.config.recipe import Recipe
from lmtrain.config.values import flattened
from lmtrain.data.corpus import Corpus
from lmtrain.evaluation.records import records
from lmtrain.evaluation.scores import Scores, metrics_document
from lmtrain.modeling import lora
from lmtrain.modeling.classifier_head import labels_of
from lmtrain.preprocessing.stream import Stream
from lmtrain.runs.file_names import PREDICTIONS
from lmtrain.runtime.device import environment
from lmtrain.runtime.files import write_lines
from lmtrain.runtime.invocation import origin
from lmtrain.runtime.memory import peak_memory
from lmtrain.training.callbacks import RunCallback
from lmtrain.training.data_report import data_document
from lmtrain.training.datasets import PreparedData, tokenizer_fingerprint
from lmtrain.training.trainer import ExactTrainer


def resolved_settings(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    network: PreTrainedModel,
    prepared: PreparedData,
    arguments: TrainingArguments,
    dtype: str,
) -> dict[str, Any]:
    """The resolved settings, which a resumed run is compared with (compatibility.py)."""
    shapes = [(name, list(p.shape), p.requires_grad) for name, p in sorted(network.named_parameters())]
    held = prepared.held_out
    return {
        "model.shape": sha256(json.dumps(shapes).encode()).hexdigest(),
        "model.tokenizer": tokenizer_fingerprint(tokenizer)
        or sha256(json.dumps(tokenizer.get_vocab()).encode()).hexdigest(),
        "data.train": corpus.file_sizes() if recipe.data.streaming else prepared.train.fingerprint,
        "data.eval": held.fingerprint + " ".join(held.evaluation_sets) if held else None,
        **{f"data.{name}": value for name, value in prepared.limits.resolved.items()},
        "train.learning_rate": arguments.learning_rate,
        "train.precision": dtype,
        "run.num_processes": arguments.world_size,
        "train.grad_accum": arguments.gradient_accumulation_steps,
    }


NOT_SETTINGS = ("objective", "gates", "run")
"""Keys of a recipe that do not change what is learnt."""


def checkpoint_bytes(network: PreTrainedModel) -> int:
    """The approximate size of a checkpoint: the saved weights, and two moments for each trained one."""
    saved = [p for p in network.parameters() if p.requires_grad or not lora.is_adapted(network)]
    return sum(p.numel() * (p.element_size() + (8 if p.requires_grad else 0)) for p in saved)


def results_document(
    recipe: Recipe,
    trainer: ExactTrainer,
    run: RunCallback,
    scores: Scores | None,
    prepared: PreparedData,
    status: str,
) -> dict[str, Any]:
    """The content of results.json."""
    state = trainer.state
    logged = [entry.get("loss") for entry in state.log_history]
    losses = [loss for loss in logged if loss is not None and math.isfinite(loss)]  # None: not finite, in a checkpoint
    seen, trained, slots = trainer.tokens_saved if status == "failed" else trainer.count()
    seconds, training = trainer.elapsed.now()
    stream = trainer.batches if isinstance(trainer.batches, Stream) else None
    return {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "status": status,
        **(metrics_document(scores) if scores else {"metrics": {}}),
        "initial_metrics": run.initial,
        "train": {
            "steps": state.global_step,
            "epochs": stream.state.epoch if stream else state.epoch or 0.0,
            **({"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}),
            "tokens_seen": seen,
            "tokens_trained": trained,
            "tokens_per_second": seen / max(training, 1e-9),
            "seconds": seconds,
            "peak_memory_bytes": peak_memory(),
        },
        "data": data_document(recipe, prepared, trainer.batches, 1 - seen / max(slots, 1)) | _labels(trainer),
        "gates": [],
        "settings": settings_document(recipe, prepared.limits.resolved, trainer.args),
        **origin(),
        "environment": environment(trainer.args.world_size, recipe.train.seed),
    }


def _labels(trainer: ExactTrainer) -> dict[str, list[str]]:
    """The labels of a classifier, which an adapter's folder has nowhere else."""
    classes = [type(trainer.model).__name__]
    return {"labels": [*labels_of(trainer.model.config, classes)]} if is_classifier(classes) else {}


def settings_document(recipe: Recipe, lengths: Mapping[str, int], arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that were used, with those that were found out, under the names that `--set` takes."""
    named = {"run.license": recipe.run.license, "run.language": recipe.run.language}
    found = {
        **{name: value for name, value in named.items() if value},
        "train.learning_rate": arguments.learning_rate,
        "train.precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "run.num_processes": arguments.world_size,
    }
    return {**flattened(recipe.saved(dict(lengths)), NOT_SETTINGS), **found}


def save_model(trainer: ExactTrainer, run: RunCallback, scores: Scores | None, results: dict[str, Any]) -> None:
    """Save the model beside its results, to be loaded by any tool that loads transformers models."""
    state_dict = trainer.whole_weights()
    if not trainer.is_world_process_zero():
        return
    network, folder = trainer.model, run.folder
    if "use_cache" in network.config.to_dict():
        network.config.use_cache = True  # Trainer turns it off; whoever generates wants it
    with folder.model_files() as aside:
        lora.save(network, aside, state_dict)
        trainer.processing_class.save_pretrained(aside)
    if scores and run.evaluator:
        for line in scores.notes:
            run.console.warn(line)
        asked = run.recipe.eval.predictions
        flag = "--predictions" if asked else "--output-dir"
        write_lines(Path(asked or folder.path / PREDICTIONS), records(run.evaluator, scores), flag)
    folder.finish(results)
