"""A training run, from top to bottom."""

import math
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from lmtrain import chat, evaluate, metrics
from lmtrain.accounts import data_document, show_ledgers
from lmtrain.apart import choose_packing
from lmtrain.checkpoint import step_of, to_resume
from lmtrain.console import Console
from lmtrain.corpus import Corpus
from lmtrain.dataset import Limits
from lmtrain.errors import InputError, Interrupted, LmtrainError, OutOfMemory, StorageError, UsageError
from lmtrain.evaluate import Scores, figures_of
from lmtrain.loss import TokenLoss
from lmtrain.machine import T5_FAMILY, environment, part, peak_memory, precision
from lmtrain.model import load_config, load_network, load_tokenizer, positions
from lmtrain.objectives import OBJECTIVES
from lmtrain.prepare import Prepared, feed, learn_tokenizer, prepare
from lmtrain.progress import LiveProgress
from lmtrain.report import PREDICTIONS, RunFolder, storage_error, write_lines
from lmtrain.streaming import STREAM, Stream
from lmtrain.trainer import ExactTrainer, Watch


def train(recipe: Any, corpus: Corpus, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Train as the recipe says and return the content of results.json.

    Raises an LmtrainError for whatever the user can put right; the run folder appears only once training can start.
    """
    started = time.monotonic()
    checkpoint, passed = to_resume(recipe.run.resume, folder, (STREAM,) if recipe.data.streaming else ())
    evaluates = bool(recipe.data.eval or recipe.data.val_split)
    _check_end(recipe, checkpoint, evaluates)
    config = load_config(recipe.model, recipe.objective)
    arguments = _arguments(recipe, config.model_type, evaluates, checkpoint is not None)
    console.main_process = PartialState().is_main_process
    objective = OBJECTIVES[recipe.objective]
    set_seed(recipe.train.seed)

    with console.working("loading the tokenizer"):
        tokenizer, told = load_tokenizer(
            recipe.model, corpus.kind, lambda name: learn_tokenizer(name, corpus, objective.frame)
        )
    objective.collate(tokenizer, recipe.data, recipe.train.seed)  # refuses a tokenizer that cannot serve it
    with console.working("loading the model"):
        network, notes = load_network(recipe.model, config, tokenizer, objective.auto_model)
    if corpus.kind == "messages":
        network.generation_config.eos_token_id = chat.end_ids(tokenizer)  # an answer ends where its turn does
    limits = Limits(positions(network), {})
    packing = choose_packing(network, recipe.data, corpus.kind, objective.shift == 1)
    with console.working("tokenising the data"):
        prepared = prepare(corpus, objective, tokenizer, packing.data, limits)
    examples, held_out = prepared.train, prepared.held_out
    collate, loss = objective.fit(network, examples, tokenizer, recipe.data, recipe.train.seed, limits)
    loss = replace(loss, apart=packing.apart)
    loss = objective.fit_to_train(network, examples, loss, collate, recipe.train.label_smoothing)
    process = arguments.process_index, arguments.world_size
    batches = feed(recipe, corpus, objective, tokenizer, packing, prepared, collate, limits, process)
    floats = precision(recipe.train.precision, config.model_type)
    evaluation = held_out and evaluate.prepare(
        recipe, objective, held_out, tokenizer, collate, loss, limits, floats, console
    )
    for line in [*prepared.notes, *told, *notes, *_spoken(limits, recipe, loss, config, arguments)]:
        console.note(line)
    for line in [*prepared.warnings, *packing.warnings]:
        console.warn(line)
    show_ledgers(recipe, prepared, batches, console)

    folder = _shared(folder)
    arguments.output_dir = str(folder.checkpoints)
    if PartialState().is_main_process:
        folder.create(recipe, recipe.run.overwrite, limits.resolved)
        if recipe.run.resume:
            folder.rewind(step_of(checkpoint) if checkpoint else -1)
            for line in [*passed, *([f"going on from {checkpoint}"] if checkpoint else [])]:
                console.note(line)
    PartialState().wait_for_everyone()

    run = Watch(recipe, folder, evaluation, console)
    trainer = ExactTrainer(
        model=network, args=arguments, train_dataset=batches if isinstance(batches, Stream) else batches.examples,
        eval_dataset=held_out, data_collator=collate, processing_class=tokenizer,
        callbacks=_callbacks(recipe, run, console),
    ).prepare(loss, evaluation, batches)  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries the result alone
    run.trainer = trainer
    try:
        with run.signals():
            _train(trainer, recipe, checkpoint, run)
        scores = run.final_scores()
    except LmtrainError:
        with suppress(OSError):  # a disk that is full has been told of already
            if console.main_process:
                folder.finish(_results(recipe, trainer, run, None, prepared, started, "failed"))
        raise
    status = "interrupted" if run.stopped_by else "completed"
    results = _results(recipe, trainer, run, scores, prepared, started, status)
    _save(trainer, network, tokenizer, folder, results)
    if scores and evaluation and console.main_process:
        for line in scores.notes:
            console.warn(line)
        write_lines(Path(recipe.eval.predictions or folder.path / PREDICTIONS), evaluation.records(scores))
    part()
    if run.stopped_by:
        raise Interrupted(f"interrupted at step {trainer.state.global_step}, a checkpoint is saved; go on with\n"
                          f"  {folder.command('--resume auto')} -o {folder.path}", run.stopped_by)  # fmt: skip
    return results


def _train(trainer: ExactTrainer, recipe: Any, checkpoint: Path | None, run: Watch) -> None:
    """Run the Trainer, and say in one sentence what memory and disk have to say."""
    if recipe.train.max_steps == 0:
        return
    if checkpoint:
        trainer.recall(checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError:
        size = recipe.train.batch_size
        raise OutOfMemory(f"out of memory with {size} rows at once; the same loss with less memory: "
                          f"--batch-size {max(size // 2, 1)} --grad-accum {recipe.train.grad_accum * 2}, "
                          "--gradient-checkpointing, or a shorter --max-length") from None  # fmt: skip
    except OSError as error:
        raise storage_error(run.folder.path, error) from None
    except RuntimeError as error:
        # safetensors and torch report a full disk as an error of their own.
        if any(sign in str(error) for sign in ("No space left", "I/O error", "inline_container", "StreamWriter")):
            raise StorageError(f"{run.folder.path}: a file could not be written to its end; free some space or choose "
                               "another --output-dir. Checkpoints from before are whole: --resume auto") from None  # fmt: skip
        raise
    except UnpicklingError:
        raise InputError(f"{checkpoint}: holds objects that could run code when they are read, which no checkpoint of "
                         "lmtrain does; remove it, and --resume auto goes on from the one before") from None  # fmt: skip
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, LiveProgress):
                callback.stop()


def _check_end(recipe: Any, checkpoint: Path | None, evaluates: bool) -> None:
    """Raise UsageError for a run that would never stop by what it is told to stop by, or has stopped already."""
    if recipe.eval.early_stop and not evaluates:
        raise UsageError("--early-stop needs evaluation data: --eval-data or --val-split")
    if checkpoint and recipe.train.max_steps and step_of(checkpoint) >= recipe.train.max_steps:
        raise UsageError(f"{checkpoint} is at --max-steps {recipe.train.max_steps} already; ask for more steps")


def _callbacks(recipe: Any, run: Watch, console: Console) -> list[TrainerCallback]:
    patience = recipe.eval.early_stop
    stopping = [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []
    return [run, LiveProgress(console), *stopping]


# --- settings --------------------------------------------------------------------------------------------------------

RENAMED = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "lr_scheduler": "lr_scheduler_type",
    "log_every": "logging_steps",
    "keep": "save_total_limit",
    "compile": "torch_compile",
}
"""Our short names -> TrainingArguments' names."""

NOT_ARGUMENTS = {
    "max_time", "precision", "label_smoothing", "save_every", "gradient_checkpointing", "max_steps", "batch_tokens",
    "group_by_length",
}  # fmt: skip


def _arguments(recipe: Any, model_type: str, evaluates: bool, resumes: bool) -> TrainingArguments:
    """TrainingArguments as the recipe says. Raises UsageError for values that it does not take."""
    section = recipe.train
    given = {
        RENAMED.get(name, name): value for name, value in section.model_dump().items() if name not in NOT_ARGUMENTS
    }
    known = {field.name for field in fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    every = {
        f"{what}_{name}": value
        for what, steps in (("eval", recipe.eval.every), ("save", section.save_every))
        for name, value in ([("strategy", "epoch")] if steps == "epoch" else [("strategy", "steps"), ("steps", steps)])
    }
    if not evaluates:
        every |= {"eval_strategy": "no"}
    ours = {
        **every,
        "output_dir": recipe.run.output_dir or "runs",
        "learning_rate": section.learning_rate or learning_rate(model_type, recipe.model.from_scratch),
        "max_steps": section.max_steps or -1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # else a loss that is NaN is logged as 0
        "eval_on_start": evaluates and not resumes,
        "restore_callback_states_from_checkpoint": recipe.eval.early_stop is not None,
        "metric_for_best_model": metrics.trainer_name(recipe.eval.best_metric) if evaluates else None,
        "greater_is_better": recipe.eval.best_metric in metrics.HIGHER_IS_BETTER,
        "per_device_eval_batch_size": recipe.eval.batch_size,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "ignore_data_skip": recipe.data.streaming,  # a stream knows where it stands
        "use_cpu": not torch.accelerator.is_available(),
        checkpointing: section.gradient_checkpointing,
        **{name: precision(section.precision, model_type) == name for name in ("bf16", "fp16")},
    }
    try:
        arguments = TrainingArguments(**{**given, **ours})
    except (ValueError, TypeError) as error:
        raise UsageError(f"train: {str(error).splitlines()[0]}") from None
    _check_reporters(arguments)
    if arguments.n_gpu > 1:
        # One process would spread over all GPUs by DataParallel, which is slow and averages losses of parts.
        arguments._n_gpu = 1
    return arguments


def _check_reporters(arguments: TrainingArguments) -> None:
    """Trackers fail when they are made, which would be after the run folder is: so they are made once before."""
    try:
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"--report-to: {str(error).splitlines()[0]}") from None


def learning_rate(model_type: str, from_scratch: bool) -> float:
    """The default peak learning rate, by family: T5 wants more, random weights ten times as much."""
    base = 1e-4 if model_type in T5_FAMILY else 5e-5
    return base * 10 if from_scratch else base


def _spoken(limits: Limits, recipe: Any, loss: TokenLoss, config: Any, arguments: TrainingArguments) -> list[str]:
    lengths = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in limits.resolved.items())
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
    lines = [f"{lengths}, --learning-rate {arguments.learning_rate:g}, --precision {precision}, {arguments.device}"
             + (f" × {arguments.world_size}" if arguments.world_size > 1 else "")]  # fmt: skip
    if "max_source_length" in limits.resolved and not (
        recipe.data.max_source_length and recipe.data.max_target_length
    ):
        lines.append(
            "a length that was not given is what 99 % of the pairs need; longer ones are treated by --on-long"
        )
    if loss.own:
        lines.append(f"{config.model_type} has a training loss of its own; eval_loss is the plain cross entropy")
    return lines


# --- results ---------------------------------------------------------------------------------------------------------


def _results(
    recipe: Any, trainer: ExactTrainer, run: Watch, scores: Scores | None, prepared: Prepared, started: float,
    status: str,
) -> dict[str, Any]:  # fmt: skip
    """The content of results.json."""
    state = trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry and math.isfinite(entry["loss"])]
    seen, trained, places = run.counted if status == "failed" else trainer.count()
    stream = trainer.batches if isinstance(trainer.batches, Stream) else None
    return {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "status": status,
        **(figures_of(scores) if scores else {"metrics": {}}),
        "initial_metrics": run.initial,
        "train": {
            "steps": state.global_step,
            "epochs": stream.state.epoch if stream else state.epoch or 0.0,
            **({"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}),
            "tokens_seen": seen,
            "tokens_trained": trained,
            "tokens_per_second": (seen - trainer.before[0]) / max(time.monotonic() - run.began, 1e-9),
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory(),
        },
        "data": data_document(recipe, prepared, trainer.batches, 1 - seen / max(places, 1)),
        "gates": [],
        "environment": environment(trainer.args.world_size, recipe.train.seed),
    }


def _shared(folder: RunFolder) -> RunFolder:
    """The first process's folder: the name may hold the time."""
    paths = [str(folder.path)]
    if PartialState().num_processes > 1:
        broadcast_object_list(paths)
    return RunFolder(Path(paths[0]))


def _save(trainer: ExactTrainer, network: Any, tokenizer: Any, folder: RunFolder, results: dict[str, Any]) -> None:
    """The model beside its results, to be loaded by any tool that loads transformers models."""
    # Only a sharded model has to be gathered; any other is saved as it is, bare of wrappers and of the compiler.
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.is_world_process_zero():
        return
    try:
        if "use_cache" in network.config.to_dict():
            network.config.use_cache = True  # Trainer turns it off; whoever generates wants it
        network.save_pretrained(folder.path, state_dict=state_dict)
        tokenizer.save_pretrained(folder.path)
        folder.finish(results)
    except OSError as error:
        raise storage_error(folder.path, error) from None
