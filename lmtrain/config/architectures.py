"""Which model types of transformers each objective trains.

The tables are parsed from the source of the installed transformers, because importing it takes seconds.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from lmtrain.config.heads import HEADS, kind_of
from lmtrain.config.training_arguments import transformers_source
from lmtrain.errors import InputError, UsageError, visible

TABLES = {
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "an encoder-decoder"),
    "mlm": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "an encoder with bidirectional attention"),
    "clm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "a decoder with causal attention"),
}
"""Objective -> name of transformers' table of its models, and what such a model is called.

The first table that lists a model type decides its objective: BERT is also in the causal table, but without a causal mask
it would see the tokens that it predicts.
"""

OWN = {TABLES["seq2seq"][0]: {"lstm": "LSTMForConditionalGeneration"}}
"""Table -> what lmtrain adds to it, see lmtrain/modeling/registration.py."""

CLASSIFY = "classify"
"""The objective of encoders with a head for labels. It is made from a model of mlm, or continues one with such a head."""

LABELS = "labels.json"
"""The labels of an adapter, beside it: the configuration of its base does not have them."""

LABEL_TASKS = tuple({head.task_type for head in HEADS.values()})
"""peft's tasks of adapters that give labels."""

TRAINED = re.compile(r"(bpe|wordpiece|unigram):(\d+)|(char|byte)")
GONE = (
    "transfo-xl",
    "xlm-prophetnet",
    "mega",
    "nezha",
    "ernie_m",
    "qdqbert",
    "gptsan-japanese",
    "open-llama",
    "bort",
    "realm",
)
"""Language models that transformers 5 no longer has."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER = "adapter_config.json"
"""The file that identifies the folder of a LoRA adapter."""


@cache
def model_table(name: str) -> dict[str, str]:
    """A table of transformers, with what lmtrain adds: model type -> class name."""
    folder = transformers_source("models", "auto")
    for file in ("modeling_auto.py", "auto_mappings.py", "configuration_auto.py"):
        path = folder / file
        for statement in ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else ():
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call):
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                if isinstance(target, ast.Name) and target.id == name and statement.value.args:
                    return dict(ast.literal_eval(statement.value.args[0])) | OWN.get(name, {})
    raise RuntimeError(f"transformers has no table {name}")


def made_for(model_type: str) -> str | None:
    """The objective of a model type; None if it is not a language model."""
    return next((objective for objective, (name, _) in TABLES.items() if model_type in model_table(name)), None)


def adapter_base(name: str) -> str | None:
    """The base model of the LoRA adapter in a folder; None if it is not an adapter. Raises InputError."""
    path = Path(name) / ADAPTER
    if not path.is_file():
        return None
    base = str(read_json(path).get("base_model_name_or_path") or "")
    if not base:
        raise InputError(f"{path}: base_model_name_or_path is missing")
    if (Path(base) / ADAPTER).is_file():
        raise InputError(f"{name}: the base of this adapter is an adapter; merge that one first")
    if not Path(base).is_dir() and (base.startswith(".") or not HUB_NAME.fullmatch(base)):
        raise InputError(
            f"{name}: the base of this adapter is {base}, and there is no such folder; write where it is into "
            f"base_model_name_or_path in {path}"
        )
    return base


def is_classifier(architectures: list[str] | None) -> bool:
    """Whether a model of these classes has a head for labels, or for answers in a text."""
    return kind_of(architectures) is not None


def types_of(objective: str) -> list[str]:
    """The model types of an objective."""
    objective = "mlm" if objective == CLASSIFY else objective
    return [model_type for model_type in model_table(TABLES[objective][0]) if made_for(model_type) == objective]


def objective_of_folder(name: str) -> str | None:
    """The objective of the model in a folder; None if `name` is not a folder. Raises InputError."""
    if base := adapter_base(name):
        of_base = objective_of_folder(base)
        gives_labels = read_json(Path(name) / ADAPTER).get("task_type") in LABEL_TASKS
        return CLASSIFY if gives_labels and of_base in (None, "mlm", CLASSIFY) else of_base
    if not Path(name).is_dir():
        return None
    config = read_config(Path(name))
    model_type = str(config["model_type"])
    if is_classifier(config.get("architectures")):
        return CLASSIFY
    objective = made_for(model_type)
    if objective is None:
        raise InputError(f"{name} ({model_type}) is not a language model that clm, mlm or seq2seq can train")
    return objective


def check_objective(model_type: str, objective: str, shown: str | None = None) -> None:
    """Raise InputError, naming the right objective, if `model_type` belongs to another one."""
    right = made_for(model_type)
    shown = shown if shown and shown != model_type else model_type
    named = shown if shown == model_type else f"{shown} ({model_type})"
    if model_type in GONE:
        raise InputError(f"{named}: transformers 5 removed this architecture; the last releases that have it are 4.x")
    if right is None:
        raise InputError(f"{named} is not a language model that clm, mlm or seq2seq can train")
    if objective == CLASSIFY and right == "mlm":
        if not any(model_type in model_table(head.table) for head in HEADS.values()):
            raise InputError(f"{named}: transformers has no classifier of this architecture")
        return
    if right != objective:
        raise InputError(f"{named} is {TABLES[right][1]}: use lmtrain {right}")


def is_architecture(name: str) -> bool:
    """Whether `name` is a model type, and not the path of a model."""
    # A run folder of that name may have been created just before.
    path = Path(name)
    is_model = any((path / file).exists() for file in ("config.json", ADAPTER))
    return made_for(name) is not None and "/" not in name and not (path.is_file() or is_model)


def check_path(name: str, flag: str) -> None:
    """Raise UsageError for a name that no file system accepts."""
    if "\0" in name or "\n" in name:
        raise UsageError(f"{flag} {visible(name)}: a name cannot contain this character")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model. Raises InputError."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: not the folder of a model, because it has no config.json")
    config = read_json(path)
    if "model_type" not in config:
        raise InputError(f"{path}: model_type is missing")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: cannot be read: not a JSON object")
    return document
