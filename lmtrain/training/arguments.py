"""The recipe's settings as TrainingArguments."""

import re
from dataclasses import fields

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lmtrain import metrics
from lmtrain.config.model import Model
from lmtrain.config.recipe import Recipe
from lmtrain.errors import UsageError
from lmtrain.runtime.device import T5_FAMILY, precision
from lmtrain.training import deepspeed

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
    "max_time",
    "precision",
    "label_smoothing",
    "save_every",
    "gradient_checkpointing",
    "max_steps",
    "batch_tokens",
    "group_by_length",
    "on_nonfinite",
    "keep",
    "kernels",
    "average",
    "average_keep",
}


def training_arguments(recipe: Recipe, model_type: str, resumes: bool) -> TrainingArguments:
    """The TrainingArguments of a recipe. Raises UsageError for values that they do not accept."""
    section, evaluates = recipe.train, recipe.evaluates
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
        "greater_is_better": bool(metrics.higher_is_better(recipe.eval.best_metric)),
        "per_device_eval_batch_size": recipe.eval.batch_size,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level_replica": "error",  # else all processes but the first log warnings
        "ddp_timeout": int(recipe.run.dist_timeout),
        "ignore_data_skip": recipe.data.streaming,  # a stream knows where it stands
        "use_cpu": not torch.accelerator.is_available(),
        checkpointing: section.gradient_checkpointing,
        **{name: precision(section.precision, model_type) == name for name in ("bf16", "fp16")},
    }
    if zero := deepspeed.settings(recipe.run):
        ours["deepspeed"] = zero
    try:
        arguments = TrainingArguments(**{**given, **ours})
        deepspeed.put_off()
    except (ValueError, TypeError) as error:
        raise UsageError(f"train: {str(error).splitlines()[0]}") from None
    _check_optimizer(arguments)
    _check_reporters(arguments)
    if arguments.n_gpu > 1:
        # One process would spread over all GPUs by DataParallel, which is slow and averages losses of parts.
        arguments._n_gpu = 1
    return arguments


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Raise UsageError for an optimiser whose library is not installed."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:
        if re.search("install|import", str(error)):  # others want the model, which is not there yet
            name = getattr(arguments.optim, "value", arguments.optim)
            raise UsageError(f"--optim {name}: {str(error).splitlines()[0]}") from None


def _check_reporters(arguments: TrainingArguments) -> None:
    """Create each tracker once, so that one that fails does so before the run folder exists."""
    try:
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"--report-to: {str(error).splitlines()[0]}") from None


def learning_rate(model_type: str, model: Model) -> float:
    """The default peak learning rate: ten times higher for random weights, and higher for T5 and LoRA."""
    t5 = model_type in T5_FAMILY
    if model.lora:
        return 1e-3 if t5 else 2e-4
    return (1e-4 if t5 else 5e-5) * (10 if model.from_scratch else 1)
