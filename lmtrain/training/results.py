"""The content of results.json, and the model beside it."""

import json
import math
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.evaluation.scores import Scores, metrics_document
from lmtrain.modeling import lora
from lmtrain.preprocessing.stream import Stream
from lmtrain.runs.file_names import PREDICTIONS
from lmtrain.runtime.device import environment
from lmtrain.runtime.files import write_lines
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
        "data.eval": held.fingerprint if held else None,
        **{f"data.{name}": value for name, value in prepared.limits.resolved.items()},
        "train.learning_rate": arguments.learning_rate,
        "train.precision": dtype,
        "run.num_processes": arguments.world_size,
        "train.grad_accum": arguments.gradient_accumulation_steps,
    }


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
    started: float,
    status: str,
) -> dict[str, Any]:
    """The content of results.json."""
    state = trainer.state
    logged = [entry.get("loss") for entry in state.log_history]
    losses = [loss for loss in logged if loss is not None and math.isfinite(loss)]  # None: not finite, in a checkpoint
    seen, trained, slots = trainer.tokens_saved if status == "failed" else trainer.count()
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
            "tokens_per_second": (seen - trainer.tokens_before[0]) / max(time.monotonic() - run.began, 1e-9),
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory(),
        },
        "data": data_document(recipe, prepared, trainer.batches, 1 - seen / max(slots, 1)),
        "gates": [],
        "environment": environment(trainer.args.world_size, recipe.train.seed),
    }


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
        write_lines(Path(asked or folder.path / PREDICTIONS), run.evaluator.records(scores), flag)
    folder.finish(results)
