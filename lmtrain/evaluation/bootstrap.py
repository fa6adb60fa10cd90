"""Bootstrap intervals and paired comparisons of any corpus metric.

A metric keeps sufficient statistics per row (for BLEU: matches, n-grams and lengths), and its score is a function of their
sums. The bootstrap draws rows with replacement and sums again (Efron 1979; for translation: Koehn, "Statistical
significance tests for machine translation evaluation", EMNLP 2004). Seed, number of resamples and order of the random
numbers are sacrebleu's, so that intervals of BLEU, chrF and TER equal those of its command. The p-value differs from
sacrebleu's, which compares absolute differences one-sidedly and comes out too small where the sign changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES, SEED = 1000, 12345


@dataclass(frozen=True)
class Metric:
    """A metric as a function of sums over rows."""

    statistics: np.ndarray
    """[rows, k] float64: what each row adds to the sums."""
    score: Callable[[np.ndarray], float]
    """Sums [k] -> value."""
    signature: str
    """How it was computed."""

    @property
    def value(self) -> float:
        return float(self.score(self.statistics.sum(0)))

    def of_row(self, row: int) -> float:
        return float(self.score(self.statistics[row]))


@dataclass(frozen=True)
class Comparison:
    """A metric of two systems on the same rows."""

    value: float
    other: float
    difference: float
    """`value` - `other`."""
    interval: list[float]
    """95 % bootstrap interval [lower, upper] of the difference."""
    p_value: float


def intervals(metrics: dict[str, Metric]) -> dict[str, list[float]]:
    """The 95 % interval [lower, upper] of each metric: percentiles of the resamples."""
    scores = resample(list(metrics.values()))
    return {name: _percentiles(column) for name, column in zip(metrics, scores.T, strict=True)}


def compare(these: dict[str, Metric], others: dict[str, Metric]) -> dict[str, Comparison]:
    """Paired bootstrap of the metrics that both systems have, on the same resamples.

    `p_value` is two-sided: the share of resamples whose difference, centred at 0, is at least as large as the observed one.
    """
    names = [name for name in these if name in others]
    scores = resample([*(these[name] for name in names), *(others[name] for name in names)])
    return {
        name: compared(these[name].value, others[name].value, scores[:, column], scores[:, len(names) + column])
        for column, name in enumerate(names)
    }


def compared(value: float, other: float, resampled: np.ndarray, others: np.ndarray) -> Comparison:
    """The comparison of two values by their scores on the same resamples, each [resamples]."""
    differences = resampled - others
    differences = differences[~np.isnan(differences)]
    extreme = int(np.sum(np.abs(differences - differences.mean()) >= abs(value - other))) if len(differences) else 0
    p_value = (extreme + 1) / (len(differences) + 1)
    return Comparison(value, other, value - other, _percentiles(differences), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that all of them together err in 5 % of cases at 0.05 (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def resample(metrics: Sequence[Metric], count: int = RESAMPLES) -> np.ndarray:
    """[count, metrics] scores of rows drawn with replacement; all metrics have the same rows and share the draws."""
    together = np.concatenate([metric.statistics for metric in metrics], axis=1)
    bounds = list(pairwise(np.cumsum([0, *(metric.statistics.shape[1] for metric in metrics)])))
    rows = len(together)
    random = np.random.default_rng(SEED)
    scores = np.empty((count, len(metrics)))
    for number in range(count):
        drawn = random.choice(rows, size=rows, replace=True)
        sums = np.bincount(drawn, minlength=rows) @ together
        scores[number] = [metric.score(sums[start:end]) for metric, (start, end) in zip(metrics, bounds, strict=True)]
    return scores


def _percentiles(scores: np.ndarray) -> list[float]:
    """The values at 2.5 % and 97.5 % of scores [resamples], NaN left out."""
    ordered = np.sort(scores[~np.isnan(scores)])
    if not len(ordered):
        return [math.nan, math.nan]
    cut = len(ordered) // 40
    return [float(ordered[cut]), float(ordered[-cut - 1])]
