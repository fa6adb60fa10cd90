"""A model that is there already: what it was made for, and by which settings it is scored or asked.

A run folder brings its own: `lmtrain eval --model RUN` repeats the evaluation that ended the run.
"""

import json
from pathlib import Path

from lmtrain.config import architectures, assertions, model_checks
from lmtrain.config.loading import build, from_environment, merge, objective_of, read_yaml
from lmtrain.config.model import Model
from lmtrain.config.options import leaves
from lmtrain.config.recipe import RECIPES, TRAINING_ALONE, GenerateRequest, Recipe, untrained_leaves
from lmtrain.config.values import Document
from lmtrain.errors import UsageError
from lmtrain.metrics import TEXT_METRICS
from lmtrain.runs.file_names import RECIPE, RESULTS

COMMAND_LINE = "the command line"


def to_score(given: Document, objective: str | None) -> tuple[Recipe, list[str] | None]:
    """(the recipe to score a model by, the data that were named; None: what the run held out).

    `given` are the flags that were typed, in sections. Raises UsageError, InputError.
    """
    try:
        assertions.parse_assertions(
            given.get("gates", {}).get("assertions", [])
        )  # before the hub may have to be asked
    except ValueError as error:
        raise UsageError(f"--assert: {error}") from None
    name, own, objective = _known(given, objective)
    recipe_class = RECIPES[objective]
    for section, field in ((section, field) for section, fields in given.items() for field in fields):
        if not any((leaf.section, leaf.name) == (section, field) for leaf in leaves(recipe_class)):
            raise UsageError(f"--{_flag(section, field)}: not an option of {objective}, which {name} is for")
    environment = from_environment(recipe_class)
    for name in TRAINING_ALONE & set(environment.get("data", {})):
        del environment["data"][name]
    typed = merge(environment, given)
    data = typed.get("data", {}).get("eval") or typed.get("data", {}).get("train")
    if not data and not own:
        raise UsageError("--data is missing: what should the model be scored on?")
    if not data and typed.get("train", {}).get("seed", own["train"].get("seed")) != own["train"].get("seed"):
        raise UsageError(
            "--seed: another seed holds out other rows, on which the run was trained; name some with --data"
        )
    both = {"data": {"train": data, "eval": data}} if data else {}
    return build(recipe_class, merge(own, typed, both), COMMAND_LINE), data


def to_ask(given: Document, objective: str | None) -> tuple[GenerateRequest, str, str | None]:
    """(the request, the objective of its model, the kind of rows that it was trained on if known).

    Raises UsageError, InputError.
    """
    name, own, objective = _known(given, objective)
    direction = {n: own.get("data", {}).get(n) for n in ("source_prefix", "source_lang", "target_lang")}
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
        environment.get("data", {}).pop("data", None)  # meant for training
    return build(GenerateRequest, merge(known, environment, given), COMMAND_LINE), objective, _kind(name)


def _known(given: Document, objective: str | None) -> tuple[str, Document, str]:
    """(the model's name, what its run's recipe says, the objective)."""
    environment = from_environment(GenerateRequest).get("model", {})
    name = given.setdefault("model", {}).setdefault("name", environment.get("name"))
    if not name:
        raise UsageError("--model is missing: a hub id, a folder or a run folder")
    if objective is not None and objective not in RECIPES:
        raise UsageError(f"--objective {objective}: clm, mlm or seq2seq")
    own = _recipe_of_run(name)
    objective = objective or own.get("objective") or objective_of_model(Model(**given["model"]))
    return name, own if own.get("objective") == objective else {}, objective


def objective_of_model(model: Model) -> str:
    """What a model, or the base of an adapter, was made for. Raises InputError."""
    if objective := architectures.objective_of_folder(model.name):
        return objective
    name = architectures.adapter_base(model.name) or model.name
    model_checks.check_name(name)
    from lmtrain.modeling.configuration import objective_of_hub
    from lmtrain.runtime import device

    device.quiet_libraries()
    return objective_of_hub(model.model_copy(update={"name": name}))


def _recipe_of_run(name: str) -> Document:
    """What the recipe of a run folder says of data, evaluation and seed; empty where `name` is no run.

    Not of the model, which is the one in the folder, and nothing that would run code: neither what comes with a model
    nor a metric that is not ours.
    """
    path = Path(name) / RECIPE
    if not path.is_file() or not (Path(name) / RESULTS).is_file():
        return {}
    document = read_yaml(path)
    data, evaluation, train = ({**(document.get(section) or {})} for section in ("data", "eval", "train"))
    evaluation.pop("predictions", None)
    data = {key: value for key, value in data.items() if key not in TRAINING_ALONE or key == "val_split"}
    if "metric" in evaluation:
        evaluation["metric"] = [metric for metric in evaluation["metric"] if metric in TEXT_METRICS]
    return {
        "objective": objective_of(document, str(path)),
        "data": data,
        "eval": evaluation,
        "train": {key: value for key, value in train.items() if key in ("seed", "precision")},
    }


def _kind(name: str) -> str | None:
    try:
        return json.loads((Path(name) / RESULTS).read_text(encoding="utf-8"))["data"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flag(section: str, field: str) -> str:
    known = untrained_leaves(*RECIPES.values())
    return next(leaf.flag for leaf in known if (leaf.section, leaf.name) == (section, field)).replace("_", "-")
