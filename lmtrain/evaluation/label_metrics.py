"""Metrics of predicted labels as sums over rows, so that the bootstrap can compute intervals and comparisons."""

from itertools import chain

import numpy as np

from lmtrain.data.labels import Labels
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.entities import count_matches


def label_metrics(true: Labels, predicted: Labels, signature: str, entities: bool) -> dict[str, Metric]:
    """Accuracy and, with `entities`, precision, recall and F1 of entities, else macro F1 over the labels."""
    correct = np.array(
        [[sum(map(str.__eq__, *pair)), len(pair[0])] for pair in zip(true, predicted, strict=True)], float
    )
    accuracy = {"accuracy": Metric(correct, lambda sums: sums[0] / max(sums[1], 1), signature)}
    if not entities:
        return accuracy | {"macro_f1": Metric(_counts_by_label(true, predicted), _macro_f1, signature)}
    counts = np.array([count_matches(p, t) for t, p in zip(true, predicted, strict=True)], float)
    return accuracy | {
        "entity_precision": Metric(counts, lambda sums: sums[0] / max(sums[1], 1), signature),
        "entity_recall": Metric(counts, lambda sums: sums[0] / max(sums[2], 1), signature),
        "entity_f1": Metric(counts, lambda sums: 2 * sums[0] / max(sums[1] + sums[2], 1), signature),
    }


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
    return float(np.mean(2 * true_positives[present] / occurrences[present]))
