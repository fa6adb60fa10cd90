"""A training run, from top to bottom."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from lmtrain import chat, drift, evaluate, lora, metrics
from lmtrain.accounts import data_document, show_ledgers
from lmtrain.apart import choose_packing
from lmtrain.checkpoint import Continued, step_of
from lmtrain.console import Console
from lmtrain.corpus import Corpus
from lmtrain.dataset import Limits, longest
from lmtrain.errors import Interrupted, LmtrainError, OutOfMemory, StorageError, UsageError
from lmtrain.evaluate import Scores, figures_of
from lmtrain.joining import choose as choose_joining
from lmtrain.joining import is_wanted as joins
from lmtrain.kernels import quick_dropout
from lmtrain.loss import TokenLoss
from lmtrain.machine import T5_FAMILY, environment, keep_memory, part, peak_memory, precision
from lmtrain.model import load_network, positions
from lmtrain.objectives import OBJECTIVES
from lmtrain.preflight import is_wanted, preflight
from lmtrain.prepare import Prepared, feed, identity, learn_tokenizer, prepare
from lmtrain.pretrained import load_config, load_tokenizer
from lmtrain.progress import LiveProgress
from lmtrain.report import PREDICTIONS, RunFolder, check_room, storage_error, write_lines
from lmtrain.retreat import is_out_of_memory
from lmtrain.streaming import Stream
from lmtrain.trainer import ExactTrainer, Finished
from lmtrain.watch import Watch


def train(recipe: Any, corpus: Corpus, folder: RunFolder, continued: Continued, console: Console) -> dict[str, Any]:
    """Train as the recipe says, from the checkpoint that it is `continued` from on, and return the content of results.json.

    Raises an LmtrainError for whatever the user can put right; the run folder is written to only once training can start.
    """
    started = time.monotonic()
    folder, continued = _shared(folder, continued)
    trainer, run, prepared = assemble(recipe, corpus, folder, continued, console)
    results = _carry_out(recipe, trainer, run, prepared, continued.checkpoint, started)
    part()
    if run.stopped_by:
        raise Interrupted(_to_go_on(trainer, folder), run.stopped_by)
    return results


def assemble(
    recipe: Any, corpus: Corpus, folder: RunFolder, continued: Continued, console: Console, kept: bool = True
) -> tuple[ExactTrainer, Watch, Prepared]:
    """All that a run needs, ready for its first step; if it is to be `kept`, the run folder as well. Raises as `train` does."""
    evaluates = bool(recipe.data.eval or recipe.data.val_split)
    _check_end(recipe, continued.checkpoint, evaluates)
    config = load_config(recipe.model, recipe.objective)
    arguments = _arguments(recipe, config.model_type, evaluates, continued.checkpoint is not None)
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
        joining = choose_joining(network, loss, collate, longest(examples, limits, recipe.data.streaming))
    loss = replace(loss, apart=joining.apart) if joining else loss
    process = arguments.process_index, arguments.world_size
    width = joining.width if joining else None
    batches = feed(recipe, corpus, objective, tokenizer, packing, prepared, collate, limits, process, width)
    floats = precision(recipe.train.precision, config.model_type)
    evaluation = held_out and evaluate.prepare(
        recipe, objective, held_out, tokenizer, collate, loss, limits, floats, console
    )
    facts = _facts(recipe, corpus, tokenizer, network, prepared, limits, arguments, floats)
    changed = drift.check_facts(continued.identity, facts, recipe.run.allow_drift)
    for line in [*prepared.notes, *told, *notes, *_spoken(limits, recipe, loss, config, arguments)]:
        console.note(line)
    for line in [*prepared.warnings, *packing.warnings, *changed, *drift.versions(continued.identity, environment())]:
        console.warn(line)
    show_ledgers(recipe, prepared, batches, console)

    arguments.output_dir = str(folder.checkpoints)
    if kept and PartialState().is_main_process:
        _enter(folder, recipe, continued, limits, network, console)
    PartialState().wait_for_everyone()

    run = Watch(recipe, folder, evaluation, console)
    trainer = ExactTrainer(
        model=network, args=arguments, train_dataset=batches if isinstance(batches, Stream) else batches.examples,
        eval_dataset=held_out, data_collator=collate, processing_class=tokenizer,
        callbacks=_callbacks(recipe, run, console),
    ).prepare(
        loss, evaluation, batches, drift.identity(recipe, facts, environment()), recipe.train.keep, console.warn, joining
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries the result alone
    run.trainer = trainer
    return trainer, run, prepared


def _enter(
    folder: RunFolder, recipe: Any, continued: Continued, limits: Limits, network: Any, console: Console
) -> None:
    """Make the run folder, or go back in it to where the run goes on from."""
    check_room(folder, _checkpoint_bytes(network), recipe.train.keep)
    folder.create(recipe, recipe.run.overwrite, limits.resolved)
    if recipe.run.resume:
        folder.rewind(step_of(continued.checkpoint) if continued.checkpoint else -1)
        for line in continued.notes:
            console.note(line)


def _carry_out(
    recipe: Any, trainer: ExactTrainer, run: Watch, prepared: Prepared, checkpoint: Path | None, started: float
) -> dict[str, Any]:
    """Train, evaluate, save the model; whatever becomes of it is written down. The content of results.json."""
    folder = run.folder

    def unfinished(status: str) -> dict[str, Any]:
        results = _results(recipe, trainer, run, None, prepared, started, status)
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
            results = _results(recipe, trainer, run, scores, prepared, started, "completed")
            _save(trainer, run, scores, results)
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
        keep_memory()
    try:
        with suppress(Finished), nullcontext() if recipe.train.compile else quick_dropout():
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


def _facts(
    recipe: Any, corpus: Corpus, tokenizer: Any, network: Any, prepared: Prepared, limits: Limits,
    arguments: TrainingArguments, floats: str,
) -> dict[str, Any]:  # fmt: skip
    """What settings come to, to be compared when the run goes on (drift.py)."""
    shapes = [(name, list(p.shape), p.requires_grad) for name, p in sorted(network.named_parameters())]
    held = prepared.held_out
    return {
        "model.shape": sha256(json.dumps(shapes).encode()).hexdigest(),
        "model.tokenizer": identity(tokenizer) or sha256(json.dumps(tokenizer.get_vocab()).encode()).hexdigest(),
        "data.train": corpus.size_of_files() if recipe.data.streaming else prepared.train.fingerprint,
        "data.eval": held.fingerprint if held else None,
        **{f"data.{name}": value for name, value in limits.resolved.items()},
        "train.learning_rate": arguments.learning_rate,
        "train.precision": floats,
        "run.num_processes": arguments.world_size,
    }


def _checkpoint_bytes(network: Any) -> int:
    """About: the weights that are saved, and two numbers of the optimiser for each that is trained."""
    saved = [p for p in network.parameters() if p.requires_grad or not lora.is_adapted(network)]
    return sum(p.numel() * (p.element_size() + (8 if p.requires_grad else 0)) for p in saved)


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
    "compile": "torch_compile",
}
"""Our short names -> TrainingArguments' names."""

NOT_ARGUMENTS = {
    "max_time", "precision", "label_smoothing", "save_every", "gradient_checkpointing", "max_steps", "batch_tokens",
    "group_by_length", "on_nonfinite", "keep",
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
        "learning_rate": section.learning_rate or learning_rate(model_type, recipe.model),
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


def learning_rate(model_type: str, model: Any) -> float:
    """The default peak learning rate: random weights want ten times as much as trained ones, T5 and LoRA more as well."""
    t5 = model_type in T5_FAMILY
    if model.lora:
        return 1e-3 if t5 else 2e-4
    return (1e-4 if t5 else 5e-5) * (10 if model.from_scratch else 1)


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


# --- results ---------------------------------------------------------------------------------------------------------


def _results(
    recipe: Any, trainer: ExactTrainer, run: Watch, scores: Scores | None, prepared: Prepared, started: float,
    status: str,
) -> dict[str, Any]:  # fmt: skip
    """The content of results.json."""
    state = trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry and math.isfinite(entry["loss"])]
    seen, trained, places = trainer.counted if status == "failed" else trainer.count()
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


def _shared(folder: RunFolder, continued: Continued) -> tuple[RunFolder, Continued]:
    """Those of the first process: a folder's name may hold the time, a checkpoint is looked for once."""
    found = [folder, continued]
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    return found[0], found[1]


def _save(trainer: ExactTrainer, run: Watch, scores: Scores | None, results: dict[str, Any]) -> None:
    """The model beside its results, to be loaded by any tool that loads transformers models."""
    # Only a sharded model has to be gathered; any other is saved as it is, bare of wrappers and of the compiler.
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if not trainer.is_world_process_zero():
        return
    network, folder = trainer.model, run.folder
    if "use_cache" in network.config.to_dict():
        network.config.use_cache = True  # Trainer turns it off; whoever generates wants it
    with folder.aside() as aside:
        lora.save(network, aside, state_dict)
        trainer.processing_class.save_pretrained(aside)
    if scores and run.evaluation:
        for line in scores.notes:
            run.console.warn(line)
        predictions = Path(run.recipe.eval.predictions or folder.path / PREDICTIONS)
        write_lines(predictions, run.evaluation.records(scores))
    folder.finish(results)
