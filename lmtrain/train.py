"""A training run, from top to bottom."""

import json
import math
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed


from lmtrain import __version__, metrics
from lmtrain.batching import Order, padding_fraction
from lmtrain.checkpoint import to_resume
from lmtrain.console import Console
from lmtrain.encode import Examples, Key, Limits
from lmtrain.errors import BrokenDown, InputError, Interrupted, OutOfMemory, StorageError, UsageError
from lmtrain.evaluate import Evaluation
from lmtrain.generate import COMPLETION_TOKENS, Settings
from lmtrain.loss import TokenLoss
from lmtrain.model import load_config, load_network, load_tokenizer, positions
from lmtrain.objectives import OBJECTIVES
from lmtrain.progress import LiveProgress
from lmtrain.report import METRICS, SAMPLES, RunFolder, storage_error
from lmtrain.sources import Rows

T5_FAMILY = frozenset(["t5", "mt5", "umt5", "longt5", "switch_transformers"])


def train(
    recipe: Any, train_rows: Rows, eval_rows: Rows | None, folder: RunFolder, console: Console
) -> dict[str, Any]:
    """Train as the recipe says and return the content of results.json.

    Raises an LmtrainError for whatever the user can put right; the run folder appears only once training can start.
    """
    started = time.monotonic()
    arguments = _arguments(recipe, folder, eval_rows is not None)
    console.main_process = PartialState().is_main_process
    objective = OBJECTIVES[recipe.objective]
    set_seed(recipe.train.seed)

    config = load_config(recipe.model, recipe.objective)
    tokenizer, told = load_tokenizer(recipe.model, train_rows, objective.frame)
    objective.collate(tokenizer, recipe.data, recipe.train.seed)  # refuses a tokenizer that cannot serve it
    network, notes = load_network(recipe.model, config, tokenizer, objective.auto_model)
    limits = Limits(positions(network.config), {})
    examples = objective.encode(train_rows, tokenizer, recipe.data, limits, False)
    held_out = objective.encode(eval_rows, tokenizer, recipe.data, limits, True) if eval_rows else None
    collate, loss = objective.fit(
        network, examples, tokenizer, recipe.data, recipe.train.seed, limits, recipe.train.label_smoothing
    )
    _account(examples, held_out, collate, recipe)
    evaluation = held_out and Evaluation(
        objective, held_out, eval_rows, tokenizer, collate, loss, recipe.eval.batch_size, _settings(recipe, limits)
    )
    for line in [*train_rows.notes, *told, *notes, *_spoken(limits, recipe, loss, config, arguments)]:
        console.note(line)
    console.ledger({name: e.ledger.document() for name, e in (("train", examples), ("eval", held_out)) if e})

    checkpoint = to_resume(recipe.run.resume, folder)
    folder = _shared(folder)
    arguments.output_dir = str(folder.checkpoints)
    if PartialState().is_main_process:
        folder.create(recipe, recipe.run.overwrite)
        if checkpoint:
            folder.rewind(int(checkpoint.name.rpartition("-")[2]))
            console.note(f"going on from {checkpoint}")
    PartialState().wait_for_everyone()

    run = Watch(recipe, folder, evaluation, console)
    trainer = ExactTrainer(
        model=network, args=arguments, train_dataset=examples, eval_dataset=held_out, data_collator=collate,
        processing_class=tokenizer, callbacks=_callbacks(recipe, run, console, evaluation),
    ).prepare(loss, evaluation)  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries the result alone
    run.trainer = trainer
    with run.signals():
        _train(trainer, recipe, checkpoint, run)
    figures = run.final_figures()
    results = _results(recipe, trainer, run, figures, examples, held_out, train_rows, eval_rows, started)
    _save(trainer, network, tokenizer, folder, results)
    if run.stopped_by:
        raise Interrupted(f"interrupted at step {trainer.state.global_step}, a checkpoint is saved; go on with\n"
                          f"  {_again(folder, '--resume auto')} -o {folder.path}", run.stopped_by)  # fmt: skip
    return results


class ExactTrainer(Trainer):
    """Trainer with an exact loss, an exact evaluation, and an order of rows that is a function of (seed, epoch)."""

    def prepare(self, loss: TokenLoss, evaluation: Evaluation | None) -> "ExactTrainer":
        self.token_loss, self.evaluation = loss, evaluation
        # Trainer counts the labels of a whole step for models that say they divide by them: compute_loss does.
        self.model_accepts_loss_kwargs = True
        self.tokens_seen = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self.tokens_trained = torch.zeros((), dtype=torch.int64, device=self.args.device)
        return self

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Key]:
        together = self.args.train_batch_size * self.args.world_size if self.args.world_size > 1 else 1
        return Order(len(self.train_dataset), self.args.seed, together)  # type: ignore[arg-type]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self.tokens_seen += inputs["attention_mask"].sum()
        self.tokens_trained += (inputs["labels"] != -100).sum()
        loss = self.token_loss(model, inputs, num_items_in_batch)
        # DistributedDataParallel averages gradients over the processes; the exact loss wants their sum.
        return loss * self.accelerator.num_processes

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Trainer's mean of batch means replaced by the exact evaluation; the callbacks see it as usual."""
        assert self.evaluation
        # An untrained model's outputs say nothing, and it seldom knows how to stop: only its likelihoods.
        figures = self.evaluation.run(self.model, self.accelerator, write=self.state.global_step > 0)
        logs = {name if name == "eval_loss" else f"eval_{name}": value for name, value in figures.items()}
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and start_time is not None:
            seconds = time.time() - start_time
            logs["tokens_per_second"] = int(self.tokens_seen) * self.args.world_size / max(seconds, 1e-9)
        super().log(logs, start_time)


class Watch(TrainerCallback):
    """Decides when to evaluate, save and stop, and writes down what happens."""

    def __init__(self, recipe: Any, folder: RunFolder, evaluation: Evaluation | None, console: Console):
        self.recipe, self.folder, self.evaluation, self.console = recipe, folder, evaluation, console
        self.trainer: ExactTrainer = None  # type: ignore[assignment]
        self.began = time.monotonic()
        self.evaluated_at = self.saved_at = -1
        self.stopped_by: int | None = None
        self.initial: dict[str, float] = {}
        self.figures: dict[int, dict[str, float]] = {}

    # --- signals

    def signals(self) -> Any:
        """While training, Ctrl-C and SIGTERM ask for a checkpoint and a stop; a second one leaves at once."""
        return _Signals(self)

    def _asked_to_stop(self) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self.stopped_by is not None
        if self.stopped_by:
            accelerator.set_trigger()
        stop = accelerator.check_trigger()
        self.stopped_by = (self.stopped_by or signal.SIGTERM) if stop else None
        return stop

    # --- events

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        limit = self.recipe.train.max_time
        over = limit is not None and time.monotonic() - self.began >= limit
        if self._asked_to_stop():
            control.should_training_stop, control.should_save = True, True
            control.should_evaluate = False
        elif over or state.global_step >= state.max_steps:
            control.should_training_stop, control.should_save, control.should_log = True, True, True
            control.should_evaluate = self.evaluation is not None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The last step of an epoch may have been evaluated and saved already, by number or because it is the last.
        control.should_evaluate = control.should_evaluate and self.evaluated_at != state.global_step
        control.should_save = control.should_save and self.saved_at != state.global_step
        if self.stopped_by:
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_at = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        figures = {n if n == "eval_loss" else n.removeprefix("eval_"): v for n, v in metrics.items()}
        if state.global_step == 0:
            self.initial = figures
        else:
            self.figures[state.global_step] = figures
            value, best = metrics[args.metric_for_best_model], state.best_metric
            if best is None or (value > best if args.greater_is_better else value < best):
                control.should_save = True  # the best model is kept, whatever --save-every says
            self._show_samples(state.global_step)
        self.evaluated_at = state.global_step

    def _show_samples(self, step: int) -> None:
        if self.recipe.eval.samples and self.evaluation and self.console.main_process:
            samples = self.evaluation.samples(self.trainer.model, self.recipe.eval.samples)
            for sample in samples:
                self.folder.append(SAMPLES, {"step": step, **sample})
            self.console.samples(samples[:1])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and self.console.main_process and ("loss" in logs or "eval_loss" in logs):
            plain = {n.removeprefix("eval_") if n != "eval_loss" else n: v for n, v in logs.items()}
            self.folder.append(METRICS, {"step": state.global_step, **plain})
        if logs and any(not math.isfinite(logs.get(name, 0.0)) for name in ("loss", "eval_loss")):
            raise BrokenDown(f"the loss is no longer a finite number, at step {state.global_step} or shortly before; "
                             f"try a lower --learning-rate. The last checkpoint in {self.folder.checkpoints} is "
                             "from before")  # fmt: skip

    def final_figures(self) -> dict[str, float]:
        """The figures of the model that is kept: the best one, which is loaded, or the last."""
        state = self.trainer.state
        if self.evaluation is None:
            return {}
        best = state.best_global_step
        if best and best != state.global_step and state.best_model_checkpoint and not self.stopped_by:
            self.trainer._load_best_model()
            self.console.note(f"keeping the model of step {best}, the best by {self.recipe.eval.best_metric}")
            state_step = best
        else:
            state_step = state.global_step
        if state_step in self.figures:
            return self.figures[state_step]
        if self.stopped_by:
            return {}
        figures = self.evaluation.run(self.trainer.model, self.trainer.accelerator)
        if state_step == 0:
            self.initial = self.initial or figures
        return figures


@dataclass
class _Signals:
    run: Watch

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.run.stopped_by:
            os._exit(128 + number)
        self.run.stopped_by = number
        self.run.console.warn("stopping after this step, with a checkpoint; once more leaves at once")

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _train(trainer: ExactTrainer, recipe: Any, checkpoint: Path | None, run: Watch) -> None:
    """Run the Trainer, and say in one sentence what memory and disk have to say."""
    if recipe.train.max_steps == 0:
        return
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
        if "No space left" in str(error) or "I/O error" in str(error):
            raise StorageError(f"{run.folder.path}: {str(error).splitlines()[0]}") from None
        raise
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, LiveProgress):
                callback.stop()


def _callbacks(recipe: Any, run: Watch, console: Console, evaluation: Evaluation | None) -> list[TrainerCallback]:
    patience = recipe.eval.early_stop
    if patience and evaluation is None:
        raise UsageError("--early-stop needs evaluation data: --eval-data or --val-split")
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

NOT_ARGUMENTS = {"max_time", "precision", "label_smoothing", "save_every", "gradient_checkpointing", "max_steps"}


def _arguments(recipe: Any, folder: RunFolder, evaluates: bool) -> TrainingArguments:
    """TrainingArguments as the recipe says. Raises UsageError for values that it does not take."""
    section = recipe.train
    given = {
        RENAMED.get(name, name): value for name, value in section.model_dump().items() if name not in NOT_ARGUMENTS
    }
    known = {field.name for field in fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    metric = recipe.eval.best_metric if recipe.eval.best_metric == "eval_loss" else f"eval_{recipe.eval.best_metric}"
    every = {
        f"{what}_{name}": value
        for what, steps in (("eval", recipe.eval.every), ("save", section.save_every))
        for name, value in ([("strategy", "epoch")] if steps == "epoch" else [("strategy", "steps"), ("steps", steps)])
    }
    if not evaluates:
        every |= {"eval_strategy": "no"}
    ours = {
        **every,
        "output_dir": str(folder.checkpoints),
        "learning_rate": section.learning_rate or learning_rate(recipe),
        "max_steps": section.max_steps or -1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # else a loss that is NaN is logged as 0
        "eval_on_start": evaluates,
        "metric_for_best_model": metric if evaluates else None,
        "greater_is_better": recipe.eval.best_metric in metrics.HIGHER_IS_BETTER,
        "per_device_eval_batch_size": recipe.eval.batch_size,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        checkpointing: section.gradient_checkpointing,
        **_precision(recipe),
    }
    try:
        arguments = TrainingArguments(**{**given, **ours})
    except (ValueError, TypeError) as error:
        raise UsageError(f"train: {str(error).splitlines()[0]}") from None
    if arguments.n_gpu > 1:
        # One process would spread over all GPUs by DataParallel, which is slow and averages losses of parts.
        arguments._n_gpu = 1
    return arguments


def learning_rate(recipe: Any) -> float:
    """The default peak learning rate, by family: T5 wants more, random weights ten times as much."""
    base = 1e-4 if any(name in recipe.model.name.lower() for name in ("t5", "t0")) else 5e-5
    return base * 10 if recipe.model.from_scratch else base


def _precision(recipe: Any) -> dict[str, bool]:
    asked = recipe.train.precision
    if asked == "auto":
        asked = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and any(name in recipe.model.name.lower() for name in T5_FAMILY):
        raise UsageError("--precision fp16: T5's activations overflow in it; use bf16 or fp32")
    if asked == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
    return {"bf16": asked == "bf16", "fp16": asked == "fp16"}


def _settings(recipe: Any, limits: Limits) -> Settings:
    if "max_target_length" not in limits.resolved:
        return Settings()
    return Settings(recipe.eval.num_beams, recipe.eval.max_new_tokens or limits.resolved["max_target_length"])


def _spoken(limits: Limits, recipe: Any, loss: TokenLoss, config: Any, arguments: TrainingArguments) -> list[str]:
    lengths = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in limits.resolved.items())
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
    lines = [f"{lengths}, --learning-rate {arguments.learning_rate:g}, --precision {precision}, {arguments.device}"
             + (f" × {arguments.world_size}" if arguments.world_size > 1 else "")]  # fmt: skip
    if loss.own:
        lines.append(f"{config.model_type} has a training loss of its own; eval_loss is the plain cross entropy")
    return lines


# --- accounts --------------------------------------------------------------------------------------------------------


def _account(examples: Examples, held_out: Examples | None, collate: Any, recipe: Any) -> None:
    """Fill in what the ledger can only know once rows are batches. Raises InputError where nothing would be trained."""
    for part, epoch, size in ((examples, 0, recipe.train.batch_size), (held_out, None, recipe.eval.batch_size)):
        if part is None:
            continue
        count = 0
        for start in range(0, len(part), 256):
            rows = [part[epoch, row] for row in range(start, min(start + 256, len(part)))]
            count += int((collate(rows)["labels"] != -100).sum())
        part.ledger.tokens_trained = count
        columns = [part.columns[name].lengths for name in ("input_ids", "labels") if name in part.columns]
        order = np.argsort(-part.lengths, kind="stable")
        if epoch is not None:
            order = np.array([row for _, row in Order(len(part), recipe.train.seed)])
        part.ledger.padding_fraction = padding_fraction(columns, order, size)
        if not count:
            raise InputError(f"{'--data' if epoch is not None else '--eval-data'}: not one token of it would be "
                             "predicted: the texts are too short, or --mask-probability is too low")  # fmt: skip


def _shared_rows(train_rows: Rows, eval_rows: Rows | None) -> int:
    """How many evaluation rows (of running text: passages) also are training rows, word for word."""
    if eval_rows is None:
        return 0
    seen = set(_by_group(train_rows))
    return sum(content in seen for content in _by_group(eval_rows))


def _by_group(rows: Rows) -> Iterator[str]:
    for _, group in groupby(zip(rows.groups, rows.values, strict=True), key=lambda pair: pair[0]):
        yield json.dumps([value for _, value in group])


def _results(
    recipe: Any, trainer: ExactTrainer, run: Watch, figures: dict[str, float], examples: Examples,
    held_out: Examples | None, train_rows: Rows, eval_rows: Rows | None, started: float,
) -> dict[str, Any]:  # fmt: skip
    state, world = trainer.state, trainer.args.world_size
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    counts = torch.stack([trainer.tokens_seen, trainer.tokens_trained])
    seen, trained = (int(count) for count in trainer.accelerator.reduce(counts))
    seconds = time.monotonic() - run.began
    data: dict[str, Any] = {"train": examples.ledger.document()}
    if held_out is not None:
        data |= {"eval": held_out.ledger.document(), "shared_rows": _shared_rows(train_rows, eval_rows)}
    results = {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "status": "interrupted" if run.stopped_by else "completed",
        "metrics": figures,
        "initial_metrics": run.initial,
        "train": {
            "steps": state.global_step,
            "epochs": state.epoch or 0.0,
            **({"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}),
            "tokens_seen": seen,
            "tokens_trained": trained,
            "tokens_per_second": seen / max(seconds, 1e-9),
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": _peak_memory(),
        },
        "data": data,
        "gates": [],
        "environment": environment(world, recipe.train.seed),
    }
    return results


def environment(processes: int = 1, seed: int | None = None) -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lmtrain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "devices": ", ".join(gpus) or f"cpu ({os.cpu_count()} cores)",
        "processes": processes,
        **({} if seed is None else {"seed": seed}),
    }


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _shared(folder: RunFolder) -> RunFolder:
    """The first process's folder: the name may hold the time."""
    paths = [str(folder.path)]
    if PartialState().num_processes > 1:
        broadcast_object_list(paths)
    return RunFolder(Path(paths[0]))


def folder_of(folder: RunFolder) -> Path:
    return folder.path


def next_command(recipe: Any, folder: RunFolder) -> str:
    return f"lmtrain {recipe.objective} --model {folder.path} --data …   (train on)"


def _again(folder: RunFolder, more: str = "") -> str:
    return f"lmtrain run {folder.path / 'recipe.yaml'} {more}".strip()


def _save(trainer: ExactTrainer, network: Any, tokenizer: Any, folder: RunFolder, results: dict[str, Any]) -> None:
    """The model beside its results, to be loaded by any tool that loads transformers models."""
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    try:
        network = trainer.accelerator.unwrap_model(network)
        if "use_cache" in network.config.to_dict():
            network.config.use_cache = True  # Trainer turns it off; whoever generates wants it
        network.save_pretrained(folder.path, state_dict=state_dict)
        tokenizer.save_pretrained(folder.path)
        folder.finish(results, _again(folder))
    except OSError as error:
        raise storage_error(folder.path, error) from None


def quiet_libraries() -> None:
    """Their bars and advice would bury ours; what matters of it is said by lmtrain in its own words."""
    transformers.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
