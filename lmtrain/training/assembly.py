"""The assembly of a run: each step returns a value that the next one takes.

config → tokenizer → network → packing → collator → examples → loss → batches → evaluator → trainer. Training, preview, eval,
bench and doctor use the same steps.
"""

from dataclasses import dataclass, replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainingArguments,
)

from lmtrain.config.averaging import EMA
from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.data.locations import located
from lmtrain.errors import UsageError
from lmtrain.evaluation.building import build_evaluator
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.document_mask import Packing, choose_packing
from lmtrain.modeling.loss import TokenLoss, depends_on_padding, ends_with_head, has_own_loss
from lmtrain.modeling.padding_free import PaddingFree, choose_padding_free, is_applicable
from lmtrain.modeling.sharding import Sharding, check_shardable
from lmtrain.modeling.unused_parameters import may_leave_unused
from lmtrain.objectives.objective import OBJECTIVES, Objective
from lmtrain.preprocessing.batch import Collator
from lmtrain.preprocessing.dataset import Examples, Limits, longest_lengths
from lmtrain.runs import compatibility
from lmtrain.runs.checkpoint import ResumePoint, step_of
from lmtrain.runs.file_names import RECIPE
from lmtrain.runs.run_folder import RunFolder, check_disk_space
from lmtrain.runs.saved_run import check_labels
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment, precision
from lmtrain.training import deepspeed
from lmtrain.training.arguments import training_arguments
from lmtrain.training.averaging import MovingAverage
from lmtrain.training.callbacks import RunCallback
from lmtrain.training.data_report import show_ledgers
from lmtrain.training.datasets import PreparedData, prepare_data, training_batches
from lmtrain.training.health import Health
from lmtrain.training.hosts import check_shared, of_first
from lmtrain.training.live_progress import LiveProgress
from lmtrain.training.loaded_model import load_model
from lmtrain.training.results import checkpoint_bytes, resolved_settings
from lmtrain.training.tracked_texts import TrackedTexts
from lmtrain.training.trainer import ExactTrainer


@dataclass(frozen=True)
class Assembly:
    """A run that is ready for its first step."""

    trainer: ExactTrainer
    callback: RunCallback
    data: PreparedData


def assemble(
    recipe: Recipe, corpus: Corpus, folder: RunFolder, continued: ResumePoint, console: Console, saved: bool = True
) -> Assembly:
    """Build everything that a run needs; if it is `saved`, create the run folder.

    Raises an LmtrainError for whatever the user can put right.
    """
    check_end(recipe, continued)
    config = load_config(recipe.model, recipe.objective)
    labels = of_first(corpus.labels if PartialState().is_main_process else [])
    objective = OBJECTIVES[recipe.objective].fitted(
        config, corpus.kind, check_labels(recipe.model.name, corpus.kind, labels)
    )
    arguments = training_arguments(recipe, config.model_type, continued.checkpoint is not None)
    console.main_process = PartialState().is_main_process
    model = load_model(recipe, config, objective, corpus, console)
    packing = choose_packing(model.network, recipe.data, corpus.kind, objective.shift == 1)
    collator = objective.collator(model.tokenizer, recipe.data, recipe.train.seed)
    with console.working("tokenising the data"):
        data = prepare_data(corpus, objective, model.tokenizer, collator, packing.data, model.limits)
    collator, loss = fit_scoring(objective, model.network, data.train, collator)
    loss = fit_training(recipe, objective, model.network, data.train, packing, collator, loss)
    sharded = recipe.run.shard == "fsdp2" and arguments.world_size > 1
    if sharded:
        check_shardable(model.network)
    elif arguments.world_size > 1 and arguments.ddp_find_unused_parameters is None:
        shortest = data.train[0, int(np.argmin(data.train.lengths))]
        unused = may_leave_unused(model.network, loss, collator([shortest]))
        arguments.ddp_find_unused_parameters = unused
    padding_free = fit_padding_free(recipe, model.network, data.train, packing, collator, loss)
    if padding_free:
        loss = replace(loss, document_attention=padding_free.attention)
    batches = training_batches(
        recipe,
        corpus,
        objective,
        model.tokenizer,
        packing,
        data,
        collator,
        (arguments.process_index, arguments.world_size),
        padding_free.width if padding_free else None,
    )
    dtype = precision(recipe.train.precision, config.model_type)
    evaluator = None
    if data.held_out:
        evaluator = build_evaluator(recipe, objective, data.held_out, model.tokenizer, collator, loss, dtype, console)
    settings = resolved_settings(recipe, corpus, model.tokenizer, model.network, data, arguments, dtype)
    changed = compatibility.check_facts(continued.identity, settings, recipe.run.allow_drift)
    for line in [*data.notes, *model.notes, *_notes(recipe, objective, data.limits, loss, config, arguments)]:
        console.note(line)
    versions = compatibility.version_warnings(continued.identity, environment())
    for line in [*data.warnings, *model.warnings, *packing.warnings, *changed, *versions]:
        console.warn(line)
    show_ledgers(recipe, data, batches, console)

    arguments.output_dir = str(folder.checkpoints)
    if saved and PartialState().is_main_process:
        _open_folder(folder, recipe, continued, data.limits, model.network, console)
    PartialState().wait_for_everyone()
    if sharded and saved:
        check_shared(folder.path / RECIPE)
    identity = compatibility.identity(recipe, settings, environment())
    deepspeed.begin(arguments)
    trainer = ExactTrainer(
        model.network,
        arguments,
        model.tokenizer,
        collator,
        loss,
        batches,
        evaluator=evaluator,
        padding_free=padding_free,
        identity=identity,
        keep=recipe.train.checkpoints_kept,
        warn=console.warn,
        sharding=Sharding(recipe.run.shard_offload, recipe.run.async_save) if sharded else None,
    )
    return Assembly(trainer, _add_callbacks(trainer, recipe, folder, evaluator, console), data)


# --- the steps -------------------------------------------------------------------------------------------------------


def fit_scoring(
    objective: Objective, network: PreTrainedModel, examples: Examples, collator: Collator
) -> tuple[Collator, TokenLoss]:
    """The collator and the loss for scoring this model, found by running it on two rows."""
    short, long = (examples[0, int(pick(examples.lengths))] for pick in (np.argmin, np.argmax))
    loss = objective.loss_type(objective.shift)
    head_last = not objective.labels and ends_with_head(network, collator([short]))
    if depends_on_padding(network, loss, collator([short]), collator([short, long]), head_last):
        collator = collator.padded_to(examples.limits.resolved)
    return collator, replace(loss, head_last=head_last)


def fit_training(
    recipe: Recipe,
    objective: Objective,
    network: PreTrainedModel,
    examples: Examples,
    packing: Packing,
    collator: Collator,
    loss: TokenLoss,
) -> TokenLoss:
    """The loss for training this model. Raises UsageError if the model's own loss cannot be smoothed."""
    rows = [examples[0, row] for row in range(min(len(examples), 4))]
    own = not objective.labels and has_own_loss(network, collator(rows), objective.shift)
    if recipe.train.gradient_checkpointing and not network.supports_gradient_checkpointing:
        raise UsageError(
            f"--gradient-checkpointing: transformers has none for {network.config.model_type}; leave it out"
        )
    if recipe.train.label_smoothing and objective.loss_type is not TokenLoss:
        raise UsageError("--label-smoothing: only where one of several labels is right")
    if own and recipe.train.label_smoothing:
        raise UsageError("--label-smoothing: this model has a training loss of its own, which cannot be smoothed")
    return replace(
        loss,
        label_smoothing=recipe.train.label_smoothing,
        own=own,
        document_attention=packing.mask,
        whole_logits=recipe.train.compile or PartialState().distributed_type == DistributedType.DEEPSPEED,
    )


def fit_padding_free(
    recipe: Recipe,
    network: PreTrainedModel,
    examples: Examples,
    packing: Packing,
    collator: Collator,
    loss: TokenLoss,
) -> PaddingFree | None:
    """How this model runs on padding-free batches; None if it cannot, or if packing fills the rows."""
    if not is_applicable(recipe, packing.data, examples.kind):
        return None
    return choose_padding_free(network, loss, collator, longest_lengths(examples, recipe.data.streaming))


def _add_callbacks(
    trainer: ExactTrainer, recipe: Recipe, folder: RunFolder, evaluator: Evaluator | None, console: Console
) -> RunCallback:
    texts = TrackedTexts(recipe, trainer.callback_handler.callbacks)
    callback = RunCallback(trainer, recipe, folder, evaluator, console, texts)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries the result alone
    trainer.add_callback(callback)
    trainer.add_callback(texts)
    if (average := recipe.train.averaging) and average.kind == EMA:
        trainer.add_callback(MovingAverage(trainer, average.decay))
    trainer.add_callback(Health(trainer, OBJECTIVES[recipe.objective]))
    trainer.add_callback(LiveProgress(console))
    if patience := recipe.eval.early_stop:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=patience))
    return callback


# --- before the first step -------------------------------------------------------------------------------------------


def check_end(recipe: Recipe, continued: ResumePoint) -> None:
    """Raise UsageError for a run that cannot stop as requested, or that is already beyond its last step."""
    if recipe.eval.early_stop and not recipe.evaluates:
        raise UsageError("--early-stop needs evaluation data: --eval-data or --val-split")
    checkpoint = continued.checkpoint
    if checkpoint and recipe.train.max_steps and step_of(checkpoint) > recipe.train.max_steps:
        raise UsageError(f"{checkpoint} is beyond --max-steps {recipe.train.max_steps}; ask for more steps")


def _open_folder(
    folder: RunFolder,
    recipe: Recipe,
    continued: ResumePoint,
    limits: Limits,
    network: PreTrainedModel,
    console: Console,
) -> None:
    """Create the run folder, or take it back to the step that the run continues from."""
    check_disk_space(folder, checkpoint_bytes(network), recipe.train.checkpoints_kept)
    folder.create(located(recipe), recipe.run.overwrite, dict(limits.resolved))
    if recipe.run.resume:
        folder.rewind(step_of(continued.checkpoint) if continued.checkpoint else -1)
        for line in continued.notes:
            console.note(line)


def _notes(
    recipe: Recipe,
    objective: Objective,
    limits: Limits,
    loss: TokenLoss,
    config: PretrainedConfig,
    arguments: TrainingArguments,
) -> list[str]:
    dtype = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
    devices = f"{arguments.device}" + (f" × {arguments.world_size}" if arguments.world_size > 1 else "")
    settings = f"{limits.as_flags()}, --learning-rate {arguments.learning_rate:g}, --precision {dtype}, {devices}"
    own = f"{config.model_type} has a training loss of its own; eval_loss is the plain cross entropy"
    return [settings, *objective.length_notes(recipe.data), *([own] if loss.own else [])]
