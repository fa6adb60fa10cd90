"""The table that `lmtrain probe` prints."""

from collections.abc import Sequence
from typing import Any

from lmtrain.runs.summary import gate_outcome


def metrics_table(results: dict[str, Any], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one column per model, `names` in the header; metrics with 95 % intervals, comparisons, gates."""
    models, baseline = results["models"], results["baseline"]["metrics"]
    header = ["", "baseline", *names]
    rows = [
        [name, f"{value:.4f}", *(_with_interval(model, name) for model in models)] for name, value in baseline.items()
    ]
    for name in baseline if len(models) > 1 else ():
        rows.append([f"{name} against", "", names[0], *(_difference(model["against"][name]) for model in models[1:])])
    for gate in results["gates"]:
        rows.append([gate["expression"], "", *[""] * (len(models) - 1), gate_outcome(gate)])
    return header, rows


def _with_interval(model: dict[str, Any], name: str) -> str:
    interval = model["intervals"].get(name)
    return f"{model['metrics'][name]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _difference(comparison: dict[str, Any]) -> str:
    low, high = comparison["interval"]
    return f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p = {comparison['p_value']:.3g}"
