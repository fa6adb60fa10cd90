"""Which settings may differ between a run and its continuation; any other change is refused by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmtrain.config.recipe import Recipe
from lmtrain.errors import UsageError, suggestion
from lmtrain.runtime.redaction import redact_document

Identity = dict[str, Any]
"""As a checkpoint stores it: {"settings": {"train.seed": …}, "facts": {"tokenizer": …}, "versions": {"torch": …}}."""

COMPARED = ("model", "data", "train")
"""Sections that are compared. How a run is evaluated, gated and stored (eval, gates, run) may change."""

MAY_CHANGE = frozenset(
    f"train.{name}"
    for name in [
        "epochs",
        "max_steps",
        "max_time",
        "save_every",
        "keep",
        "average_keep",
        "log_every",
        "report_to",
        "on_nonfinite",
        "gradient_checkpointing",
        "dataloader_num_workers",
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
    ]
)
"""Settings of training that do not affect what a step computes."""

FACTS = frozenset(
    [
        "model.tokenizer",
        "model.trust_remote_code",
        "model.allow_pickle",
        "data.train",
        "data.eval",
        "data.encoding",
        "data.max_length",
        "data.max_source_length",
        "data.max_target_length",
        "train.learning_rate",
        "train.precision",
        "train.grad_accum",
    ]
)
"""Settings that are compared by what they resolve to, e.g. the content of the data or the resolved length."""

PROCESSES, ACCUMULATION = "run.num_processes", "train.grad_accum"
"""Their product is the number of batches in a step."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of the recipe that are compared, by name."""
    document = recipe.model_dump(mode="json")
    found = {f"{section}.{name}": value for section in COMPARED for name, value in document[section].items()}
    found |= {"objective": recipe.objective, "eval.best_metric": recipe.eval.best_metric}
    compared = {name: value for name, value in found.items() if name not in MAY_CHANGE | FACTS}
    redacted: dict[str, Any] = redact_document(compared)
    return redacted


def identity(recipe: Recipe, facts: Mapping[str, Any], versions: Mapping[str, Any]) -> Identity:
    """What a checkpoint stores for later comparison."""
    libraries = {name: versions[name] for name in ("lmtrain", "torch", "transformers")}
    return {"settings": settings(recipe), "facts": facts, "versions": libraries}


def check_settings(before: Identity, recipe: Recipe) -> list[str]:
    """Warnings for changed settings that --allow-drift allows. Raises UsageError for other changes."""
    now = settings(recipe)
    allowed = recipe.run.allow_drift
    if not recipe.gates.baseline:  # whose comparison has names of its own
        check_names(allowed, {*now, *FACTS, *before.get("facts", {}), "run.num_processes", "model.shape"})
    if not before:
        return []
    return _check({name: value for name, value in before["settings"].items() if name not in FACTS}, now, allowed)


def check_facts(before: Identity, facts: Mapping[str, Any], allowed: Iterable[str]) -> list[str]:
    """The same for what the settings resolve to.

    Another number of processes needs no --allow-drift where each step keeps its rows.
    """
    if not before:
        return []
    # Earlier checkpoints hold train.grad_accum with the settings.
    old = {ACCUMULATION: before["settings"].get(ACCUMULATION), **before["facts"]}
    was, will = old[PROCESSES], facts[PROCESSES]
    batches = was * old[ACCUMULATION]
    if was == will or before["settings"].get("data.streaming"):
        return _check(old, facts, allowed)
    if batches == will * facts[ACCUMULATION]:
        kept = {name: old[name] for name in (PROCESSES, ACCUMULATION)}
        rows = f"{was} processes saved the checkpoint, {will} resume: each step keeps its rows, but dropout draws anew"
        return [*_check(old, {**facts, **kept}, allowed), rows]
    hint = "" if batches % will else f"each step keeps its rows with --grad-accum {batches // will}; or "
    return _check(old, facts, allowed, hint)


def version_warnings(before: Identity, now: Mapping[str, Any]) -> list[str]:
    """Warnings for libraries whose version has changed."""
    return [
        f"saved with {name} {version}, resuming with {now[name]}: results may differ in the last digits"
        for name, version in before.get("versions", {}).items()
        if version != now[name]
    ]


def _check(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str], hint: str = "") -> list[str]:
    changed = [name for name in sorted({*before, *now}) if not _is_same(name, before.get(name), now.get(name))]
    permitted = [name for name in changed if any(_matches(given, name) for given in allowed)]
    refused = [name for name in changed if name not in permitted]
    if refused:
        lines = [f"--resume: {name} {_change(before.get(name), now.get(name))}" for name in refused]
        flags = " ".join(f"--allow-drift {name}" for name in refused)
        raise UsageError("\n".join([*lines, f"{hint}restore the old value, or resume anyway with {flags}"]))
    return [f"resuming although {name} {_change(before.get(name), now.get(name))}" for name in permitted]


NAMES = ("model.name", "model.encoder", "model.decoder")
"""Settings that may be the path of a folder. What is in it is compared as the facts model.shape and model.tokenizer."""


def _is_same(setting: str, before: object, now: object) -> bool:
    """Whether a setting is unchanged. A folder may be named by another path, as in the recipe that a run saves."""
    if before != now and setting in NAMES and isinstance(before, str) and isinstance(now, str):
        paths = Path(before), Path(now)
        return any(path.is_absolute() for path in paths) and paths[0].name == paths[1].name
    return before == now


def check_names(allowed: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for a name in --allow-drift that is not compared."""
    names = [*known]
    for given in allowed:
        if not any(_matches(given, name) for name in names):
            raise UsageError(f"--allow-drift {given}: nothing of that name is compared{suggestion(given, names)}")


def _matches(given: str, name: str) -> bool:
    """`train.learning_rate`, `learning_rate` and `learning-rate` all match train.learning_rate."""
    plain = given.lstrip("-").replace("-", "_")
    return plain in (name, name.rpartition(".")[2])


def _change(before: object, now: object) -> str:
    old, new = str(before), str(now)
    return "has changed" if max(len(old), len(new)) > 60 else f"was {old} and is {new}"
