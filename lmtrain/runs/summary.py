"""What a command prints about its results: the table, the metric signatures and the next commands to try."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtrain.config.architectures import ADAPTER
from lmtrain.metrics import distinct
from lmtrain.runs.file_names import RECIPE, REPORT
from lmtrain.runtime.console import format_number

TRAIN_ROWS = ("steps", "first_loss", "last_loss", "tokens_trained", "tokens_per_second", "seconds")


def summary(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the results table: metrics with their 95% intervals, comparisons, gates, training statistics."""
    intervals = results.get("intervals", {})
    rows = [
        (name, format_number(value) + _interval(intervals.get(name)))
        for name, value in distinct(results["metrics"]).items()
    ]
    for name, comparison in distinct(results.get("against", {})).items():
        low, high = comparison["interval"]
        difference = f"{comparison['difference']:+.4g} [{low:+.4g}, {high:+.4g}], p = {comparison['p_value']:.3g}"
        rows.append((f"{name} against", difference))
    rows += [(gate["expression"], gate_outcome(gate)) for gate in results["gates"]]
    train = results.get("train") or results["eval"]
    return rows + [(name.replace("_", " "), format_number(train[name])) for name in TRAIN_ROWS if name in train]


def gate_outcome(gate: Mapping[str, Any]) -> str:
    """What a table says about a gate, in the words of the error message."""
    reason = f": {gate['reason']}" if gate.get("reason") else ""
    return "holds" if gate["holds"] else f"gate failed{reason}"


def _interval(interval: tuple[float, float] | None) -> str:
    return " [{}, {}]".format(*map(format_number, interval)) if interval else ""


def signatures(results: Mapping[str, Any]) -> list[str]:
    """One line for each signature, with the metrics that share it."""
    names: dict[str, list[str]] = {}
    for name, signature in distinct(results.get("signatures", {})).items():
        names.setdefault(signature, []).append(name)
    return [f"{' '.join(alike)}: {signature}" for signature, alike in names.items()]


def next_steps(objective: str, folder: Path, hint: str = "") -> str:
    """Where the model is, and which commands to try next; `hint` follows the suggestion to try `generate`."""
    adapter = (folder / ADAPTER).is_file()
    merge = f"\n  lmtrain merge {folder} -o …     merge the adapter into its base model" if adapter else ""
    what = (
        f"adapter is in {folder}; load it with peft"
        if adapter
        else f"model is in {folder}; load it with AutoModel classes"
    )
    return f"""
The {what}. Next:
  lmtrain generate --model {folder} --prompt …     see what it writes{hint}
  lmtrain eval --model {folder} --data …     score it on other data
  lmtrain {objective} --model {folder} --data …     continue training, on other data
  lmtrain run {folder / RECIPE} --seed 1     repeat the run with a changed setting{merge}
  open {folder / REPORT} in a browser     curves, samples and settings of this run"""
