"""Before a long run, in seconds: try its largest batch, evaluation, generation and a save."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lmtrain.config.recipe import Recipe
from lmtrain.errors import BrokenDown, StorageError
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.modeling import lora, sharding
from lmtrain.preprocessing.batch import IGNORED, Batch
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.runs import checkpoint
from lmtrain.runtime.console import Console
from lmtrain.training import training_state
from lmtrain.training.trainer import ExactTrainer

LONG = 1000
"""Runs of at least this many steps start with a preflight."""

NEW_TOKENS = 8
"""Tokens generated in the trial."""


def is_wanted(recipe: Recipe) -> bool:
    """Whether the run starts with a preflight: as --preflight says, else if it is long."""
    steps, requested = recipe.train.max_steps, recipe.run.preflight
    return steps != 0 and (requested if requested is not None else (steps or 0) >= LONG)


def preflight(
    trainer: ExactTrainer, evaluator: Evaluator | None, examples: Examples, checkpoints: Path, console: Console
) -> None:
    """Try the steps of a run, and restore random state, counts and gradients.

    Raises BrokenDown, OutOfMemory, StorageError.
    """
    began, before = time.monotonic(), training_state.random_state()
    with console.working("trying out the largest batch, evaluation, generation and a checkpoint"):
        batch = trainer.data_collator(_largest(trainer, examples))
        _step(trainer, batch)
        if evaluator:
            short = replace(evaluator.generation, max_new_tokens=min(evaluator.generation.max_new_tokens, NEW_TOKENS))
            replace(evaluator, generation=short).try_out(trainer.model, trainer.accelerator)
        weights = trainer.whole_weights()
        if trainer.is_world_process_zero():
            _save_and_load(trainer.model, weights, checkpoints)
    training_state.set_random_state(before)
    rows, length = trainer.concatenated(batch)["input_ids"].shape
    console.note(
        f"preflight: {rows} × {length} forward and backward, {'evaluation, ' if evaluator else ''}"
        f"save and load: passed in {time.monotonic() - began:.1f} s (--no-preflight skips this)"
    )


def _largest(trainer: ExactTrainer, examples: Examples) -> list[dict[str, Any]]:
    """The rows of the batch with the most slots for tokens; of a stream, the longest rows read so far."""
    batches = trainer.batches
    if isinstance(batches, BatchSampler):
        return [batches.examples[key] for key in batches.largest()]
    longest = np.argsort(-examples.lengths, kind="stable")[: trainer.args.train_batch_size]
    return [examples[0, int(row)] for row in longest]


def _step(trainer: ExactTrainer, batch: Batch) -> None:
    """Forward and backward as in training, also with fewer rows at once when out of memory; no update."""
    before = trainer.tokens.clone()
    trainer._tr_loss = torch.tensor(0.0, device=trainer.args.device)
    trainer.samples, trainer.begun = [batch], 0
    loss = trainer.training_step(trainer.model, batch, (batch["labels"] != IGNORED).sum().to(trainer.args.device))
    trainer.model.zero_grad()
    trainer.tokens.copy_(before)
    if not torch.isfinite(loss):
        raise BrokenDown("preflight: the loss of the largest batch is not a finite number; nothing has been trained")


def _save_and_load(network: PreTrainedModel, whole: dict[str, torch.Tensor] | None, checkpoints: Path) -> None:
    """Save the model, whose `whole` weights are given if it is sharded, and load it again.

    Raises StorageError if the tensors differ.
    """
    place = checkpoints / f"{checkpoint.ASIDE}preflight"
    checkpoint.discard(place)
    try:
        lora.save(network, place, whole)
        if lora.is_adapted(network):
            weights, read = lora.adapter_weights(network, whole), lora.saved_weights(place)
        else:
            weights, plain = whole or network.state_dict(), sharding.plain_class(network)
            read = plain.from_pretrained(place, dtype=torch.float32, use_safetensors=True).state_dict()
        wrong = [name for name, tensor in read.items() if not torch.equal(tensor, weights[name].cpu())]
    finally:
        checkpoint.discard(place)
    if wrong:
        raise StorageError(f"{checkpoints}: {wrong[0]} differs after saving and loading; choose another --output-dir")
