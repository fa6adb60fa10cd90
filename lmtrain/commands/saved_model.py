"""The settings of a saved model: its objective, the recipe to evaluate it with and the request to prompt it with.

A run folder contains its settings: `lmtrain eval --model RUN` repeats the final evaluation of the run.
"""

import json
from pathlib import Path

from lmtrain.config import architectures, assertions, model_checks
from lmtrain.config.architectures import CLASSIFY
from lmtrain.config.evaluation_sets import source_of
from lmtrain.config.labelled_data import PAIR_SEPARATOR, joined_pair
from lmtrain.config.loading import build, from_environment, merge, objective_of, read_yaml
from lmtrain.config.model import Model
from lmtrain.config.options import leaves
from lmtrain.config.recipe import RECIPES, TRAINING_ALONE, GenerateRequest, Recipe, untrained_leaves
from lmtrain.config.values import Document
from lmtrain.errors import UsageError
from lmtrain.metrics import TEXT_METRICS
from lmtrain.runs.file_names import RECIPE, RESULTS

COMMAND_LINE = "the command line"


def evaluation_recipe(given: Document, objective: str | None) -> tuple[Recipe, list[str] | None]:
    """(the recipe to evaluate a model with, the data sources given; None means the rows that the run held out).

    `given` are the flags typed, by section. Raises UsageError, InputError.
    """
    try:
        # First, because finding the objective may need a request to the hub.
        assertions.parse_assertions(given.get("gates", {}).get("assertions", []))
    except ValueError as error:
        raise UsageError(f"--assert: {error}") from None
    name, own, objective = _model_settings(given, objective)
    recipe_class = RECIPES[objective]
    for section, field in ((section, field) for section, fields in given.items() for field in fields):
        if not any((leaf.section, leaf.name) == (section, field) for leaf in leaves(recipe_class)):
            raise UsageError(f"--{_flag(section, field)}: not an option of {objective}, the objective of {name}")
    environment = from_environment(recipe_class)
    for name in TRAINING_ALONE & set(environment.get("data", {})):
        del environment["data"][name]
    typed = merge(environment, given)
    data = typed.get("data", {}).get("eval") or typed.get("data", {}).get("train")
    if not data and not own:
        raise UsageError("--data is missing: which rows should the model be evaluated on?")
    if not data and typed.get("train", {}).get("seed", own["train"].get("seed")) != own["train"].get("seed"):
        raise UsageError(
            "--seed: another seed would hold out rows on which the run was trained; give evaluation rows with --data"
        )
    if given.get("run", {}).get("allow_drift") and not typed.get("gates", {}).get("baseline"):
        raise UsageError("--allow-drift: only with --baseline, whose data and settings may differ then")
    both = {"data": {"train": [*map(source_of, data)], "eval": data}} if data else {}
    return build(recipe_class, merge(own, typed, both), COMMAND_LINE), data


def generate_request(given: Document, objective: str | None) -> tuple[GenerateRequest, str, str | None, str | None]:
    """(the request, the objective of the model, the kind of rows and the column or template it was trained on, if known).

    `given` are the flags typed, by section; what they leave open comes from the recipe of the run.
    Raises UsageError, InputError.
    """
    name, own, objective = _model_settings(given, objective)
    direction = {n: own.get("data", {}).get(n) for n in ("source_prefix", "source_lang", "target_lang")}
    data = own.get("data", {})
    inputs = [data.get(f"{name}_column") for name in ("source", "prompt", "messages", "text")]
    if data.get("question_column"):
        inputs = [joined_pair(data["question_column"], data["context_column"])]
    if pair := data.get("text_pair_column"):
        inputs = [joined_pair(data["text_column"], pair)]
    evaluation = own.get("eval", {})
    longest = own.get("data", {}).get("max_target_length")
    decoding = {n: evaluation.get(n) for n in ("length_penalty", "no_repeat_ngram_size")} | {
        "max_new_tokens": evaluation.get("max_new_tokens") or (longest and longest + 1),
        "num_beams": evaluation.get("num_beams") if evaluation.get("num_beams") != 1 else None,
    }
    known = {
        section: {key: value for key, value in content.items() if value is not None}
        for section, content in (("data", direction), ("generate", decoding))
    }
    environment = from_environment(GenerateRequest)
    if given.get("data", {}).get("prompt"):
        environment.get("data", {}).pop("data", None)  # LMTRAIN_DATA is meant for training
    request = build(GenerateRequest, merge(known, environment, given), COMMAND_LINE)
    return request, objective, _kind_of_rows(name), next(filter(None, inputs), None)


def joint_of(objective: str) -> str:
    """What is put between columns that belong to one prompt."""
    return PAIR_SEPARATOR if objective == CLASSIFY else "\n"


def _model_settings(given: Document, objective: str | None) -> tuple[str, Document, str]:
    """(the model's name, the settings of its run's recipe for this objective, the objective)."""
    environment = from_environment(GenerateRequest).get("model", {})
    name = given.setdefault("model", {}).setdefault("name", environment.get("name"))
    if not name:
        raise UsageError("--model is missing: give a hub id, a folder or a run folder")
    if objective is not None and objective not in RECIPES:
        raise UsageError(f"--objective {objective}: clm, mlm, seq2seq or classify")
    own = _recipe_of_run(name)
    objective = objective or own.get("objective") or objective_of_model(Model(**given["model"]))
    return name, own if own.get("objective") == objective else {}, objective


def objective_of_model(model: Model) -> str:
    """The objective of a model, or of the base of an adapter. Raises InputError."""
    if objective := architectures.objective_of_folder(model.name):
        return objective
    name = architectures.adapter_base(model.name) or model.name
    model_checks.check_name(name)
    from lmtrain.modeling.configuration import objective_of_hub
    from lmtrain.runtime import device

    device.quiet_libraries()
    return objective_of_hub(model)


def _recipe_of_run(name: str) -> Document:
    """The sections `data`, `eval` and `train` of a run folder's recipe; empty if `name` is no run folder.

    `model` is left out, because the model is the one in the folder. So is everything that would run code: code of the
    model's authors, and metrics that are not lmtrain's own.
    """
    path = Path(name) / RECIPE
    if not path.is_file() or not (Path(name) / RESULTS).is_file():
        return {}
    document = read_yaml(path)
    data, evaluation, train = ({**(document.get(section) or {})} for section in ("data", "eval", "train"))
    for name in ("predictions", "best_metric"):
        evaluation.pop(name, None)
    data = {key: value for key, value in data.items() if key not in TRAINING_ALONE or key == "val_split"}
    if "metric" in evaluation:
        evaluation["metric"] = [metric for metric in evaluation["metric"] if metric in TEXT_METRICS]
    return {
        "objective": objective_of(document, str(path)),
        "data": data,
        "eval": evaluation,
        "train": {key: value for key, value in train.items() if key in ("seed", "precision", "kernels")},
    }


def _kind_of_rows(name: str) -> str | None:
    """The kind of rows that a run was trained on; None if `name` is no run folder."""
    try:
        return json.loads((Path(name) / RESULTS).read_text(encoding="utf-8"))["data"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flag(section: str, field: str) -> str:
    known = untrained_leaves(*RECIPES.values())
    return next(leaf.flag for leaf in known if (leaf.section, leaf.name) == (section, field)).replace("_", "-")
