"""What transformers can train with which objective, known without importing it.

The tables are read from the source of the installed transformers: importing them takes seconds, and to say that T5
is no causal model should not.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from lmtrain.config.training_arguments import transformers_source
from lmtrain.errors import InputError, UsageError, visible

TABLES = {
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "an encoder-decoder"),
    "mlm": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "an encoder that sees both sides"),
    "clm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "a decoder that reads from left to right"),
}
"""Objective -> transformers' table of its models, and what such a model is. The first table that holds a model type
says what it was made for: BERT also stands in the causal table, but without a causal mask it would see the answer."""

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
"""Language models that transformers shipped once."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER = "adapter_config.json"
"""By this file the folder of a LoRA adapter is known."""


@cache
def _table(name: str) -> dict[str, str]:
    folder = transformers_source("models", "auto")
    for file in ("modeling_auto.py", "auto_mappings.py", "configuration_auto.py"):
        path = folder / file
        for statement in ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else ():
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call):
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                if isinstance(target, ast.Name) and target.id == name and statement.value.args:
                    return dict(ast.literal_eval(statement.value.args[0]))
    raise RuntimeError(f"transformers has no table {name}")


def made_for(model_type: str) -> str | None:
    """The objective of a model type, None where transformers trains no language model of it."""
    return next((objective for objective, (name, _) in TABLES.items() if model_type in _table(name)), None)


def adapter_base(name: str) -> str | None:
    """The model that a LoRA adapter's folder belongs to; None for what is no adapter. Raises InputError."""
    path = Path(name) / ADAPTER
    if not path.is_file():
        return None
    base = str(_read_json(path).get("base_model_name_or_path") or "")
    if not base:
        raise InputError(f"{path}: names no base_model_name_or_path")
    if (Path(base) / ADAPTER).is_file():
        raise InputError(f"{name}: an adapter of another adapter; merge that one first")
    if not Path(base).is_dir() and not HUB_NAME.fullmatch(base):
        raise InputError(f"{name}: an adapter of {base}, and there is no such folder")
    return base


def types_of(objective: str) -> list[str]:
    """The model types that were made for an objective."""
    return [model_type for model_type in _table(TABLES[objective][0]) if made_for(model_type) == objective]


def objective_of_folder(name: str) -> str | None:
    """The objective of the model in a folder, or None where `name` is none. Raises InputError."""
    if base := adapter_base(name):
        return objective_of_folder(base)
    if not Path(name).is_dir():
        return None
    model_type = str(read_config(Path(name))["model_type"])
    objective = made_for(model_type)
    if objective is None:
        raise InputError(f"{name} ({model_type}) is no language model that clm, mlm or seq2seq could train")
    return objective


def check_objective(model_type: str, objective: str, shown: str | None = None) -> None:
    """Raise InputError, naming the right objective, where `model_type` was made for another one."""
    right = made_for(model_type)
    shown = shown if shown and shown != model_type else model_type
    named = shown if shown == model_type else f"{shown} ({model_type})"
    if model_type in GONE:
        raise InputError(f"{named}: transformers 5 no longer ships this architecture; its last release with it is 4.x")
    if right is None:
        raise InputError(f"{named} is no language model that clm, mlm or seq2seq could train")
    if right != objective:
        raise InputError(f"{named} is {TABLES[right][1]}: use lmtrain {right}")


def is_architecture(name: str) -> bool:
    # A run folder of that name may just have been made.
    path = Path(name)
    is_model = any((path / file).exists() for file in ("config.json", ADAPTER))
    return made_for(name) is not None and "/" not in name and not (path.is_file() or is_model)


def check_path(name: str, flag: str) -> None:
    """Raise UsageError for what no file system takes as a name."""
    if "\0" in name or "\n" in name:
        raise UsageError(f"{flag} {visible(name)}: a name cannot hold that character")


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json, so this is not the folder of a model")
    config = _read_json(path)
    if "model_type" not in config:
        raise InputError(f"{path}: names no model_type")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: cannot be read: not a JSON object")
    return document
