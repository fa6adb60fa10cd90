"""The baseline of `--baseline`: the results of an earlier run, and whether the new ones are computed in the same way."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmtrain.config.eval import Gates
from lmtrain.config.values import Document
from lmtrain.errors import InputError
from lmtrain.metrics import distinct, higher_is_better

EVAL_DATA = "data.eval"
"""The name under which --allow-drift accepts other evaluation data."""

LIBRARIES = frozenset(["version", "lmtrain", "rouge-score"])
"""Parts of a signature that name versions, which may differ."""

OTHER = {EVAL_DATA: "other evaluation data", "tokenizer": "another tokenizer"}
"""Difference -> its name, where the two values would tell nobody anything."""


@dataclass(frozen=True)
class Setup:
    """What the metrics of a document depend on."""

    fingerprint: str | None
    """The fingerprint of the evaluation data; None if it is not known."""
    signatures: Mapping[str, str]
    """Metric -> its signature."""


def setup_of(document: Document) -> Setup:
    """The setup of a results.json, as far as it is written there."""
    data, signatures = document.get("data"), document.get("signatures")
    held_out = data.get("eval") if isinstance(data, dict) else None
    fingerprint = held_out.get("fingerprint") if isinstance(held_out, dict) else None
    return Setup(
        fingerprint if isinstance(fingerprint, str) else None,
        {name: text for name, text in signatures.items() if isinstance(text, str)}
        if isinstance(signatures, dict)
        else {},
    )


def read_baseline(path: str | None, objective: str) -> Document | None:
    """Read the results of an earlier run, or of its folder.

    Raises InputError for a file without metrics, or with those of another objective.
    """
    if path is None:
        return None
    file = Path(path, "results.json") if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        metrics = document["metrics"]
        usable = metrics and all(isinstance(value, int | float | None) for value in metrics.values())
    except OSError as error:
        raise InputError(f"--baseline {file}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--baseline {file}: not JSON: {error}") from None
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError(f"--baseline {file}: contains no metrics; expected the output of `lmtrain eval --json`")
    if (before := document.get("objective")) not in (None, objective):
        raise InputError(f"--baseline {file}: metrics of {before}, but the objective is {objective}")
    return document


def compared_metrics(baseline: Document, names: Iterable[str]) -> list[str]:
    """The metrics in `names` that are compared with the baseline: it has them, and it is known which direction is better."""
    return [
        name
        for name in distinct(dict.fromkeys(names))
        if name in baseline["metrics"] and higher_is_better(name) is not None
    ]


def check_baseline(section: Gates, objective: str, now: Setup, allowed: Iterable[str]) -> list[str]:
    """Check before the work that the baseline was made on the same data, by the same tokenizer and settings.

    `now` has the signatures that are known already. Returns warnings about what cannot be checked and about differences
    that --allow-drift (`allowed`) accepts. Raises InputError, naming every other difference.
    """
    baseline = read_baseline(section.baseline, objective)
    if baseline is None:
        return []
    before, where = setup_of(baseline), f"--baseline {section.baseline}"
    changed = differences(before, now, compared_metrics(baseline, now.signatures))
    if refused := {name: text for name, text in changed.items() if not is_allowed(name, allowed)}:
        flags = " ".join(f"--allow-drift {name}" for name in refused)
        raise InputError(
            "\n".join(f"{where}: {text}" for text in refused.values())
            + f"\ncompare with results on the same data and settings, or allow the difference with {flags}"
        )
    unknown = f"{where}: does not say on which data and settings it was made, so that is not checked"
    return [f"{where}: {text}" for text in changed.values()] + ([] if before.fingerprint else [unknown])


def differences(before: Setup, now: Setup, metrics: Iterable[str]) -> dict[str, str]:
    """Name -> description of every difference that makes the `metrics` of two setups incomparable."""
    found = {}
    if before.fingerprint and now.fingerprint and before.fingerprint != now.fingerprint:
        found[EVAL_DATA] = _described(EVAL_DATA, "", "")
    for metric in metrics:
        old, new = (_parts(setup.signatures.get(metric, "")) for setup in (before, now))
        if not old or not new:
            continue
        if "tokenizer" not in old:  # written before signatures named it
            new.pop("tokenizer", None)
        for name in {**old, **new}:
            if old.get(name) != new.get(name) and name not in LIBRARIES:
                found.setdefault(name, _described(name, old.get(name, "unset"), new.get(name, "unset")))
    return found


def _parts(signature: str) -> dict[str, str]:
    """`max_length:64|frozen|version:1` -> its parts by name; those without a name together as `method`."""
    parts = [part.partition(":") for part in signature.split("|") if part]
    plain = ", ".join(name for name, colon, _ in parts if not colon)
    return {name: value for name, colon, value in parts if colon} | ({"method": plain} if plain else {})


def _described(name: str, old: str, new: str) -> str:
    return f"made with {OTHER[name]}" if name in OTHER else f"made with {name} {old}, here it is {new}"


def is_allowed(name: str, allowed: Iterable[str]) -> bool:
    """Whether --allow-drift names it: `data.eval`, `max_length`, `max-length` and `data.max_length` are all fine."""
    return any(_last(given) == _last(name) for given in allowed)


def _last(name: str) -> str:
    return name.lstrip("-").replace("-", "_").rpartition(".")[2]
