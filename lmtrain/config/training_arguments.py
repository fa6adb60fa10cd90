"""The fields of transformers' TrainingArguments, found without importing transformers."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from lmtrain.errors import InputError

OURS = {
    "output_dir": "--output-dir",
    "do_train": "the command",
    "do_eval": "the command",
    "do_predict": "the command",
    "eval_strategy": "--eval-every",
    "save_strategy": "--save-every",
    "logging_strategy": "--log-every",
    "load_best_model_at_end": "--best-metric",
    "run_name": "--output-dir",
    "remove_unused_columns": "the objective",
    "label_names": "the objective",
    "average_tokens_across_devices": "the exact loss",
    "auto_find_batch_size": "--batch-size",
    "train_sampling_strategy": "the exact order of the data",
    "dataloader_drop_last": "the promise that no row is lost",
    "bf16": "--precision",
    "fp16": "--precision",
    "eval_on_start": "the command",
    "eval_steps": "--eval-every",
    "eval_delay": "--eval-every",
    "per_device_eval_batch_size": "--eval-batch-size",
    "metric_for_best_model": "--best-metric",
    "greater_is_better": "--best-metric",
    "data_seed": "--seed",
    "use_cpu": "the available devices",
    "ddp_timeout": "--dist-timeout",
    "log_level_replica": "--quiet",
    "fsdp": "--shard",
    "fsdp_config": "--shard",
    "disable_tqdm": "--quiet",
    "logging_first_step": "--log-every",
    "logging_nan_inf_filter": "the promise that no NaN is hidden",
    "save_only_model": "the promise that a run can be resumed",
    "prediction_loss_only": "the exact evaluation",
    "eval_accumulation_steps": "the exact evaluation",
    "batch_eval_metrics": "the exact evaluation",
    "include_for_metrics": "the exact evaluation",
    "eval_do_concat_batches": "the exact evaluation",
    "restore_callback_states_from_checkpoint": "--resume",
    "activation_checkpointing": "--gradient-checkpointing",
    "bf16_full_eval": "--precision",
    "fp16_full_eval": "--precision",
    "resume_from_checkpoint": "--resume",
    "ignore_data_skip": "the promise that a resumed run is exact",
    "enable_jit_checkpoint": "the promise that a signal leaves a checkpoint",
}
"""Fields of TrainingArguments that lmtrain sets itself -> what determines them."""


def transformers_source(*parts: str) -> Path:
    """A file or folder of the installed transformers, found without importing it. Raises InputError."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise InputError("transformers is not installed; pip install lmtrain installs it")
    return Path(spec.origin).parent.joinpath(*parts)


@cache
def training_arguments() -> dict[str, str]:
    """Every field of the installed transformers' TrainingArguments -> its annotation, parsed from the source."""
    tree = ast.parse(transformers_source("training_args.py").read_text(encoding="utf-8"))
    (definition,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
