"""TODO."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from lmtrain.commands.probe.labels import Labels
from lmtrain.evaluation.bootstrap import Metric


def figures(true: Labels, predicted: Labels, entities: bool, signature: str) -> dict[str, Metric]:
    """Accuracy, and the F1 of entities or the mean F1 of labels; as metrics by row, for intervals and comparisons."""
    right = np.array(
        [[sum(map(str.__eq__, *pair)), len(pair[0])] for pair in zip(true, predicted, strict=True)], float
    )
    made = {"accuracy": Metric(right, lambda sums: sums[0] / max(sums[1], 1), signature)}
    if not entities:
        return made | {"macro_f1": Metric(_by_label(true, predicted), _macro_f1, signature)}
    found = np.array([entities.agreement(p, t) for t, p in zip(true, predicted, strict=True)], float)
    return made | {
        "entity_precision": Metric(found, lambda sums: sums[0] / max(sums[1], 1), signature),
        "entity_recall": Metric(found, lambda sums: sums[0] / max(sums[2], 1), signature),
        "entity_f1": Metric(found, lambda sums: 2 * sums[0] / max(sums[1] + sums[2], 1), signature),
    }


def _by_label(true: Labels, predicted: Labels) -> np.ndarray:
    """[rows, 2 · labels] of each label: how often it is right, and how often it is predicted or true."""
    number = {label: index for index, label in enumerate(sorted({*chain(*true), *chain(*predicted)}))}
    counts = np.zeros((len(true), 2, len(number)))
    for row, (theirs, ours) in enumerate(zip(true, predicted, strict=True)):
        for wanted, guess in zip(theirs, ours, strict=True):
            counts[row, 0, number[wanted]] += wanted == guess
            counts[row, 1, number[wanted]] += 1
            counts[row, 1, number[guess]] += 1
    return counts.reshape(len(true), -1)


def _macro_f1(sums: np.ndarray) -> float:
    """The mean over the labels that are true or predicted of 2 · right / (predicted + true)."""
    right, either = sums.reshape(2, -1)
    there = either > 0
    return float(np.mean(2 * right[there] / either[there]))


def table(results: dict[str, Any], shown: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the figures of all models, side by side, with their 95 % intervals; then the comparisons."""
    models, baseline = results["models"], results["baseline"]["metrics"]
    header = ["", "baseline", *shown]
    rows = [
        [name, f"{value:.4f}", *(_with_interval(model, name) for model in models)] for name, value in baseline.items()
    ]
    for name in baseline if len(models) > 1 else ():
        rows.append([f"{name} against", "", shown[0], *(_difference(model["against"][name]) for model in models[1:])])
    rows += [[gate["expression"], "", *[""] * (len(models) - 1), "holds" if gate["holds"] else "does not hold"]
             for gate in results["gates"]]  # fmt: skip
    return header, rows


def _with_interval(model: dict[str, Any], name: str) -> str:
    interval = model["intervals"].get(name)
    return f"{model['metrics'][name]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _difference(comparison: dict[str, Any]) -> str:
    low, high = comparison["interval"]
    return f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p = {comparison['p_value']:.3g}"
