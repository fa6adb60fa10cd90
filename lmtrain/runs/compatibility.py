"""What has changed between a run and its continuation: named, and refused unless it may change."""

from collections.abc import Iterable
from typing import Any

from lmtrain.errors import UsageError, suggestion
from lmtrain.runtime.redaction import in_document

Identity = dict[str, Any]
"""{"settings": {"train.seed": …}, "facts": {"tokenizer": …}, "versions": {"torch": …}}: as a checkpoint keeps it."""

COMPARED = ("model", "data", "train")
"""Sections of a recipe. How a run is watched, judged and stored (eval, gates, run) may change."""

MAY_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        "epochs", "max_steps", "max_time", "save_every", "keep", "log_every", "report_to", "on_nonfinite",
        "gradient_checkpointing", "dataloader_num_workers", "dataloader_prefetch_factor",
        "dataloader_persistent_workers", "dataloader_pin_memory",
    )
)  # fmt: skip
"""What a run may go on with otherwise: how long, how watched, how loaded, but not what it computes."""

FACTS = frozenset(["model.tokenizer", "model.trust_remote_code", "model.allow_pickle", "data.train",
                   "data.eval", "data.encoding", "data.max_length", "data.max_source_length", "data.max_target_length",
                   "train.learning_rate", "train.precision"])  # fmt: skip
"""Settings of which not the words are compared but what they came to: the content of the data, the resolved length."""


def settings(recipe: Any) -> dict[str, Any]:
    """The recipe's settings that are compared, by name."""
    document = recipe.model_dump(mode="json")
    found = {f"{section}.{name}": value for section in COMPARED for name, value in document[section].items()}
    found |= {"objective": recipe.objective, "eval.best_metric": recipe.eval.best_metric}
    return in_document({name: value for name, value in found.items() if name not in MAY_CHANGE | FACTS})


def identity(recipe: Any, facts: dict[str, Any], versions: dict[str, Any]) -> Identity:
    """What a checkpoint keeps to be compared with later."""
    libraries = {name: versions[name] for name in ("lmtrain", "torch", "transformers")}
    return {"settings": settings(recipe), "facts": facts, "versions": libraries}


def check_settings(before: Identity, recipe: Any) -> list[str]:
    """What to say about settings that have changed and are allowed to. Raises UsageError for others."""
    now = settings(recipe)
    allowed = recipe.run.allow_drift
    check_names(allowed, {*now, *FACTS, *before.get("facts", {}), "run.num_processes", "model.shape"})
    return _check(before["settings"], now, allowed) if before else []


def check_facts(before: Identity, facts: dict[str, Any], allowed: Iterable[str]) -> list[str]:
    """The same of what settings came to."""
    return _check(before["facts"], facts, allowed) if before else []


def version_warnings(before: Identity, now: dict[str, Any]) -> list[str]:
    """What to say about libraries that are not those of before."""
    told = before.get("versions", {})
    return [f"saved with {name} {told[name]}, going on with {now[name]}: figures may differ in their last digits"
            for name in told if told[name] != now[name]]  # fmt: skip


def _check(before: dict[str, Any], now: dict[str, Any], allowed: Iterable[str]) -> list[str]:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    permitted = [name for name in changed if any(_means(given, name) for given in allowed)]
    refused = [name for name in changed if name not in permitted]
    if refused:
        lines = [f"--resume: {name} {_told(before.get(name), now.get(name))}" for name in refused]
        flags = " ".join(f"--allow-drift {name}" for name in refused)
        raise UsageError("\n".join([*lines, f"put it back as it was, or go on all the same with {flags}"]))
    return [f"going on though {name} {_told(before.get(name), now.get(name))}" for name in permitted]


def check_names(allowed: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for a name that is none."""
    names = [*known]
    for given in allowed:
        if not any(_means(given, name) for name in names):
            raise UsageError(f"--allow-drift {given}: nothing of that name is compared{suggestion(given, names)}")


def _means(given: str, name: str) -> bool:
    """`train.learning_rate`, `learning_rate` and `learning-rate` are one."""
    plain = given.lstrip("-").replace("-", "_")
    return plain in (name, name.rpartition(".")[2])


def _told(before: Any, now: Any) -> str:
    was, is_ = (str(value) for value in (before, now))
    return "is not what it was" if max(len(was), len(is_)) > 60 else f"was {was} and is {is_}"
