"""Metrics of predicted labels as sums over rows, so that the bootstrap can compute intervals and comparisons."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from lmtrain.data.labels import Labels
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.entities import OUTSIDE, count_matches

SCHEMES = {
    "classes": ("accuracy", "macro_f1"),
    "entities": ("accuracy", "entity_precision", "entity_recall", "entity_f1"),
    "several": ("accuracy", "micro_f1", "macro_f1"),
    "numbers": ("pearson", "spearman"),
    "answers": ("exact_match", "f1"),
}
"""What labels are -> the metrics of predicted ones, see `scheme_of`; those of answers compare texts (text_metrics.py)."""


def scheme_of(kind: str, labels: Sequence[str]) -> str:
    """What the labels of these rows are: tags are `entities` if a word may be outside of all."""
    if kind == "tagged" and OUTSIDE in labels:
        return "entities"
    return {"several": "several", "number": "numbers", "question": "answers"}.get(kind, "classes")


def label_metrics(true: Labels, predicted: Labels, signature: str, scheme: str) -> dict[str, Metric]:
    """The metrics of a scheme: of classes accuracy and macro F1; of entities accuracy, precision, recall and F1.

    Of several labels: the share of texts of which all are right, micro and macro F1. Of numbers: the correlations.
    """
    if scheme == "numbers":
        return _correlations(true, predicted, signature)
    if scheme == "several":
        rights = [[float(set(t) == set(p)), 1.0] for t, p in zip(true, predicted, strict=True)]
    else:
        rights = [[sum(map(str.__eq__, *pair)), len(pair[0])] for pair in zip(true, predicted, strict=True)]
    accuracy = {"accuracy": Metric(np.array(rights, float), lambda sums: sums[0] / max(sums[1], 1), signature)}
    if scheme == "several":
        counts = _counts_of_sets(true, predicted)
        return accuracy | {
            "micro_f1": Metric(counts, _micro_f1, signature),
            "macro_f1": Metric(counts, _macro_f1, signature),
        }
    if scheme == "classes":
        return accuracy | {"macro_f1": Metric(_counts_by_label(true, predicted), _macro_f1, signature)}
    counts = np.array([count_matches(p, t) for t, p in zip(true, predicted, strict=True)], float)
    return accuracy | {
        "entity_precision": Metric(counts, lambda sums: sums[0] / max(sums[1], 1), signature),
        "entity_recall": Metric(counts, lambda sums: sums[0] / max(sums[2], 1), signature),
        "entity_f1": Metric(counts, lambda sums: 2 * sums[0] / max(sums[1] + sums[2], 1), signature),
    }


def _correlations(true: Labels, predicted: Labels, signature: str) -> dict[str, Metric]:
    """Pearson's correlation of the numbers, and Spearman's, that of their ranks.

    The ranks are those among all rows, also in a bootstrap sample.
    """
    numbers = [np.array([row[0] for row in rows], np.float64) for rows in (true, predicted)]
    ranks = [_ranks(column) for column in numbers]
    return {
        "pearson": Metric(_moments(*numbers), _correlation, signature),
        "spearman": Metric(_moments(*ranks), _correlation, signature),
    }


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """The rank of each number; equal ones share the mean of their ranks."""
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[rows, 6]: 1, x, y, x², y², xy, around the means, which changes no correlation and loses no digits."""
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: np.ndarray) -> float:
    """The correlation from summed moments; 0 where one side is constant, since it then says nothing."""
    n, x, y, xx, yy, xy = (float(total) for total in sums)
    spread = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / math.sqrt(spread) if spread > 0 else 0.0


def _counts_of_sets(true: Labels, predicted: Labels) -> np.ndarray:
    """[rows, 2 · labels]: as `_counts_by_label`, of rows with sets of labels."""
    index_of = {label: index for index, label in enumerate(sorted({*chain(*true), *chain(*predicted)}))}
    counts = np.zeros((len(true), 2, len(index_of)))
    for row, (own, given) in enumerate(zip(true, predicted, strict=True)):
        for label in (*own, *given):
            counts[row, 1, index_of[label]] += 1
        for label in {*own} & {*given}:
            counts[row, 0, index_of[label]] += 1
    return counts.reshape(len(true), -1)


def _micro_f1(sums: np.ndarray) -> float:
    """F1 of all decisions together."""
    true_positives, occurrences = sums.reshape(2, -1).sum(1)
    return float(2 * true_positives / occurrences) if occurrences else 0.0


def _counts_by_label(true: Labels, predicted: Labels) -> np.ndarray:
    """[rows, 2 · labels]: true positives of each label, then its true plus its predicted occurrences."""
    index_of = {label: index for index, label in enumerate(sorted({*chain(*true), *chain(*predicted)}))}
    counts = np.zeros((len(true), 2, len(index_of)))
    for row, pair in enumerate(zip(true, predicted, strict=True)):
        for label, prediction in zip(*pair, strict=True):
            counts[row, 0, index_of[label]] += label == prediction
            counts[row, 1, index_of[label]] += 1
            counts[row, 1, index_of[prediction]] += 1
    return counts.reshape(len(true), -1)


def _macro_f1(sums: np.ndarray) -> float:
    """Mean F1 = 2 · TP / (predicted + true) over the labels that are true or predicted somewhere."""
    true_positives, occurrences = sums.reshape(2, -1)
    present = occurrences > 0
    return float(np.mean(2 * true_positives[present] / occurrences[present])) if present.any() else 0.0
