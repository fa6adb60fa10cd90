"""The metrics that are a function of two sums over rows, such as the loss."""

from collections.abc import Callable, Collection

import numpy as np

from lmtrain import metrics
from lmtrain.evaluation.bootstrap import Metric

RowSums = dict[str, np.ndarray]
"""Name -> [rows] float64: nll, tokens, correct, correct_top5, bytes, pseudo_nll, pseudo_tokens. Likelihoods in nats."""

Formula = Callable[[float, float], float]

FORMULAS: dict[str, tuple[str, str, Formula]] = {
    "eval_loss": ("nll", "tokens", metrics.mean),
    "perplexity": ("nll", "tokens", metrics.perplexity),
    "bits_per_byte": ("nll", "bytes", metrics.bits_per_byte),
    "token_accuracy": ("correct", "tokens", metrics.mean),
    "masked_accuracy": ("correct", "tokens", metrics.mean),
    "masked_accuracy_top5": ("correct_top5", "tokens", metrics.mean),
    "pseudo_perplexity": ("pseudo_nll", "pseudo_tokens", metrics.perplexity),
}
"""Metric -> (sum, sum, function of both)."""


def metrics_of_sums(sums: RowSums, names: Collection[str], signature: str) -> dict[str, Metric]:
    """The metrics `names`, in the order of FORMULAS; those without their sums are left out."""
    return {
        name: _of_two_sums(sums[first], sums[second], formula, signature)
        for name, (first, second, formula) in FORMULAS.items()
        if name in names and first in sums and second in sums
    }


def _of_two_sums(first: np.ndarray, second: np.ndarray, formula: Formula, signature: str) -> Metric:
    return Metric(np.stack([first, second], axis=1), lambda sums: formula(float(sums[0]), float(sums[1])), signature)
