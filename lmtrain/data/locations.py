"""Absolute paths for the recipe of a run, so that it can be run again from any folder."""

import os
from contextlib import suppress
from glob import escape, has_magic
from pathlib import Path

from lmtrain.config.architectures import TRAINED, is_architecture
from lmtrain.config.data import Split
from lmtrain.config.evaluation_sets import name_and_source
from lmtrain.config.model import Model
from lmtrain.config.recipe import Recipe
from lmtrain.data.sources import LOCAL_DATASET, open_tables
from lmtrain.data.tables import is_stdin
from lmtrain.errors import InputError


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths where it names files or folders that are read: model, tokenizer, data and so on.

    Hub ids, examples and standard input stay as they are, and so do the files that the run writes.
    """
    model, data, gates, run = recipe.model, recipe.data, recipe.gates, recipe.run
    sources = {
        "train": [absolute_data(given, data) for given in data.train],
        "eval": [absolute_data(given, data) for given in data.eval],
    }
    given = model.model_dump(include={"name", "tokenizer", "encoder", "decoder"}, exclude_none=True)
    names = {field: name if _is_made(name, model) else absolute(name) for field, name in given.items()}
    sections = {
        "model": model.model_copy(update=names),
        "data": data.model_copy(update=sources),
        "gates": gates.model_copy(update={"baseline": gates.baseline and absolute(gates.baseline)}),
        "run": run.model_copy(update={"accelerate_config": run.accelerate_config and absolute(run.accelerate_config)}),
    }
    if recipe.eval.other_metrics and (asked := recipe.eval.generation):
        metrics = [absolute(name) if name in asked.other_metrics else name for name in asked.metric]
        sections["eval"] = asked.model_copy(update={"metric": metrics})
    return recipe.model_copy(update=sections)


def _is_made(name: str, model: Model) -> bool:
    """Whether the name stands for what a run makes: a tokenizer such as bpe:8000, or an architecture."""
    return bool(TRAINED.fullmatch(name)) or (model.from_scratch and is_architecture(name))


def absolute(name: str) -> str:
    """An existing file or folder as an absolute path; any other name unchanged."""
    return _absolute(name) if Path(name).exists() else name


def absolute_data(specification: str, data: Split) -> str:
    """A value of `--data` or `--eval-data` with an absolute path where it names files."""
    name, specification = name_and_source(specification)
    if name:
        return f"{name}={absolute_data(specification, data)}"
    if is_stdin(specification) or specification.startswith("example:") or not _is_local(specification, data):
        return specification
    if has_magic(specification) and not Path(specification).exists():
        return os.path.join(escape(_absolute("")), specification)  # noqa: PTH118 - a pattern is no path
    return _absolute(specification)


def _is_local(specification: str, data: Split) -> bool:
    dataset = LOCAL_DATASET.fullmatch(specification.partition("#")[0])
    if dataset and Path(dataset["name"]).is_dir():
        return True
    with suppress(InputError):  # the file is gone since it was read
        return any(table.files for table in open_tables([specification], data))
    return False


def _absolute(name: str) -> str:
    """The absolute path, whatever follows it (#N, @split); unchanged if its folder's name cannot be written in a recipe."""
    path = os.path.abspath(name)  # noqa: PTH100 - links stay as they are named
    try:
        path.encode()
    except UnicodeEncodeError:
        return name
    return path
