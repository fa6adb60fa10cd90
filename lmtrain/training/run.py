"""A training run, from top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from lmtrain.data.corpus import Corpus
from lmtrain.errors import Interrupted, LmtrainError, OutOfMemory, StorageError, UsageError
from lmtrain.evaluation import evaluator
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.cpu_kernels import fast_dropout
from lmtrain.modeling.document_mask import choose_packing
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.network import load_network, positions
from lmtrain.modeling.padding_free import choose_padding_free as choose_joining
from lmtrain.modeling.padding_free import is_applicable as joins
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import chat
from lmtrain.preprocessing.dataset import Limits, longest_lengths
from lmtrain.preprocessing.stream import Stream
from lmtrain.runs import compatibility
from lmtrain.runs.checkpoint import Continued, step_of
from lmtrain.runs.run_folder import RunFolder, check_room
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment, leave_process_group, precision
from lmtrain.runtime.files import storage_error
from lmtrain.runtime.memory import is_out_of_memory, retain_memory
from lmtrain.training.arguments import training_arguments
from lmtrain.training.callbacks import LiveProgress, RunCallback
from lmtrain.training.data_report import show_ledgers
from lmtrain.training.datasets import PreparedData, learn_tokenizer, prepare, training_batches
from lmtrain.training.preflight import is_wanted, preflight
from lmtrain.training.results import checkpoint_bytes, resolved_settings, results_document, save_model
from lmtrain.training.trainer import ExactTrainer, Finished


def train(recipe: Any, corpus: Corpus, folder: RunFolder, continued: Continued, console: Console) -> dict[str, Any]:
    """Train as the recipe says, from the checkpoint that it is `continued` from on, and return the content of results.json.

    Raises an LmtrainError for whatever the user can put right; the run folder is written to only once training can start.
    """
    started = time.monotonic()
    folder, continued = _shared(folder, continued)
    trainer, run, prepared = assemble(recipe, corpus, folder, continued, console)
    results = _carry_out(recipe, trainer, run, prepared, continued.checkpoint, started)
    leave_process_group()
    if run.stopped_by:
        raise Interrupted(_to_go_on(trainer, folder), run.stopped_by)
    return results


def assemble(
    recipe: Any, corpus: Corpus, folder: RunFolder, continued: Continued, console: Console, kept: bool = True
) -> tuple[ExactTrainer, RunCallback, PreparedData]:
    """All that a run needs, ready for its first step; if it is to be `kept`, the run folder as well. Raises as `train` does."""
    evaluates = bool(recipe.data.eval or recipe.data.val_split)
    _check_end(recipe, continued.checkpoint, evaluates)
    config = load_config(recipe.model, recipe.objective)
    arguments = training_arguments(recipe, config.model_type, evaluates, continued.checkpoint is not None)
    console.main_process = PartialState().is_main_process
    objective = OBJECTIVES[recipe.objective]
    set_seed(recipe.train.seed)

    with console.working("loading the tokenizer"):
        tokenizer, told = load_tokenizer(
            recipe.model, corpus.kind, lambda name: learn_tokenizer(name, corpus, objective.frame_for(recipe.data))
        )
    objective.collate(tokenizer, recipe.data, recipe.train.seed)  # refuses a tokenizer that cannot serve it
    with console.working("loading the model"):
        network, notes = load_network(recipe.model, config, tokenizer, objective.auto_model, objective.task_type)
    if corpus.kind == "messages":
        network.generation_config.eos_token_id = chat.end_ids(tokenizer)  # an answer ends where its turn does
    limits = Limits(positions(network), {})
    packing = choose_packing(network, recipe.data, corpus.kind, objective.shift == 1)
    with console.working("tokenising the data"):
        prepared = prepare(corpus, objective, tokenizer, packing.data, limits)
    examples, held_out = prepared.train, prepared.held_out
    collate, loss = objective.fit(network, examples, tokenizer, recipe.data, recipe.train.seed, limits)
    loss = replace(loss, apart=packing.apart, whole_logits=recipe.train.compile or _is_sharded())
    loss = objective.fit_to_train(network, examples, loss, collate, recipe.train.label_smoothing)
    joining = None
    if joins(recipe, packing.data, corpus.kind):
        joining = choose_joining(network, loss, collate, longest_lengths(examples, limits, recipe.data.streaming))
    loss = replace(loss, apart=joining.apart) if joining else loss
    process = arguments.process_index, arguments.world_size
    width = joining.width if joining else None
    batches = training_batches(
        recipe, corpus, objective, tokenizer, packing, prepared, collate, limits, process, width
    )
    floats = precision(recipe.train.precision, config.model_type)
    evaluation = held_out and evaluator.build_evaluator(
        recipe, objective, held_out, tokenizer, collate, loss, limits, floats, console
    )
    facts = resolved_settings(recipe, corpus, tokenizer, network, prepared, limits, arguments, floats)
    changed = compatibility.check_facts(continued.identity, facts, recipe.run.allow_drift)
    for line in [*prepared.notes, *told, *notes, *_spoken(limits, recipe, loss, config, arguments)]:
        console.note(line)
    for line in [
        *prepared.warnings,
        *packing.warnings,
        *changed,
        *compatibility.version_warnings(continued.identity, environment()),
    ]:
        console.warn(line)
    show_ledgers(recipe, prepared, batches, console)

    arguments.output_dir = str(folder.checkpoints)
    if kept and PartialState().is_main_process:
        _enter(folder, recipe, continued, limits, network, console)
    PartialState().wait_for_everyone()

    run = RunCallback(recipe, folder, evaluation, console)
    trainer = ExactTrainer(
        model=network, args=arguments, train_dataset=batches if isinstance(batches, Stream) else batches.examples,
        eval_dataset=held_out, data_collator=collate, processing_class=tokenizer,
        callbacks=_callbacks(recipe, run, console),
    ).prepare(
        loss, evaluation, batches, compatibility.identity(recipe, facts, environment()), recipe.train.keep, console.warn, joining
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries the result alone
    run.trainer = trainer
    return trainer, run, prepared


def _enter(
    folder: RunFolder, recipe: Any, continued: Continued, limits: Limits, network: Any, console: Console
) -> None:
    """Make the run folder, or go back in it to where the run goes on from."""
    check_room(folder, checkpoint_bytes(network), recipe.train.keep)
    folder.create(recipe, recipe.run.overwrite, limits.resolved)
    if recipe.run.resume:
        folder.rewind(step_of(continued.checkpoint) if continued.checkpoint else -1)
        for line in continued.notes:
            console.note(line)


def _carry_out(
    recipe: Any,
    trainer: ExactTrainer,
    run: RunCallback,
    prepared: PreparedData,
    checkpoint: Path | None,
    started: float,
) -> dict[str, Any]:
    """Train, evaluate, save the model; whatever becomes of it is written down. The content of results.json."""
    folder = run.folder

    def unfinished(status: str) -> dict[str, Any]:
        results = results_document(recipe, trainer, run, None, prepared, started, status)
        with suppress(OSError):  # a disk that is full has been told of already
            if run.console.main_process:
                folder.finish(results)
        return results

    try:
        with _spoken_of(folder), run.stoppable():
            if is_wanted(recipe):
                preflight(trainer, run.evaluation, prepared.train, folder.checkpoints, run.console)
            take_steps(trainer, recipe, checkpoint)
            scores = run.final_scores()
            results = results_document(recipe, trainer, run, scores, prepared, started, "completed")
            save_model(trainer, run, scores, results)
    except LmtrainError:
        unfinished("failed")
        raise
    return unfinished("interrupted") if run.stopped_by else results


def _to_go_on(trainer: ExactTrainer, folder: RunFolder) -> str:
    step = trainer.state.global_step
    saved = "a checkpoint is saved" if step else "before the first step"
    return f"interrupted at step {step}, {saved}; go on with\n  {folder.command('--resume auto')} -o {folder.path}"


def take_steps(trainer: ExactTrainer, recipe: Any, checkpoint: Path | None = None) -> None:
    """All steps of the training, those after `checkpoint`'s if there is one."""
    if recipe.train.max_steps == 0:
        return
    if checkpoint:
        trainer.recall(checkpoint)
    if trainer.args.device.type == "cpu":
        retain_memory()
    try:
        with suppress(Finished), nullcontext() if recipe.train.compile else fast_dropout():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, LiveProgress):
                callback.stop()


@contextmanager
def _spoken_of(folder: RunFolder) -> Iterator[None]:
    """Say in one sentence what memory and disk have to say."""
    try:
        yield
    except LmtrainError:
        raise
    except OSError as error:
        raise storage_error(folder.path, error) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "out of memory; use a smaller --eval-batch-size, fewer beams or a shorter --max-length"
            ) from None
        # safetensors, torch and tokenizers report a full disk as errors of their own; that of tokenizers is a bare Exception.
        if any(sign in str(error) for sign in NOT_WRITTEN):
            raise StorageError(f"{folder.path}: a file could not be written to its end; free some space or choose another "
                               "--output-dir. Checkpoints from before are whole: --resume auto") from None  # fmt: skip
        raise


NOT_WRITTEN = ("No space left", "File too large", "Disk quota exceeded", "Read-only file system", "I/O error")


def _check_end(recipe: Any, checkpoint: Path | None, evaluates: bool) -> None:
    """Raise UsageError for a run that would never stop by what it is told to stop by, or has gone beyond it already."""
    if recipe.eval.early_stop and not evaluates:
        raise UsageError("--early-stop needs evaluation data: --eval-data or --val-split")
    if checkpoint and recipe.train.max_steps and step_of(checkpoint) > recipe.train.max_steps:
        raise UsageError(f"{checkpoint} is beyond --max-steps {recipe.train.max_steps}; ask for more steps")


def _is_sharded() -> bool:
    """Whether no process has a layer's weights to itself."""
    return PartialState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def _callbacks(recipe: Any, run: RunCallback, console: Console) -> list[TrainerCallback]:
    patience = recipe.eval.early_stop
    stopping = [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []
    return [run, LiveProgress(console), *stopping]


def _spoken(limits: Limits, recipe: Any, loss: TokenLoss, config: Any, arguments: TrainingArguments) -> list[str]:
    lengths = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in limits.resolved.items())
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
    lines = [f"{lengths}, --learning-rate {arguments.learning_rate:g}, --precision {precision}, {arguments.device}"
             + (f" × {arguments.world_size}" if arguments.world_size > 1 else "")]  # fmt: skip
    if getattr(recipe.data, "denoise", None) == "none" and not (
        recipe.data.max_source_length and recipe.data.max_target_length
    ):
        lines.append(
            "a length that was not given is what 99 % of the pairs need; longer ones are treated by --on-long"
        )
    if loss.own:
        lines.append(f"{config.model_type} has a training loss of its own; eval_loss is the plain cross entropy")
    return lines


def _shared(folder: RunFolder, continued: Continued) -> tuple[RunFolder, Continued]:
    """Those of the first process: a folder's name may hold the time, a checkpoint is looked for once."""
    found = [folder, continued]
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    return found[0], found[1]
