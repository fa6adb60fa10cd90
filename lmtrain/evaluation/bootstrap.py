"""A corpus metric by its rows, so that any of them has an interval and can be compared in pairs.

Row by row there are sufficient statistics (for BLEU: matches, n-grams and lengths), and the score is a function of
their sums. The bootstrap draws rows with replacement and sums again (Efron 1979; for translation: Koehn, "Statistical
significance tests for machine translation evaluation", EMNLP 2004). Seed, number of draws and order of the random
numbers are sacrebleu's, so that the intervals of BLEU, chrF and TER are those that its command prints. Its p-value is
not taken over: it is one-sided on absolute differences, and comes out too small where the sign changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES, SEED = 1000, 12345


@dataclass(frozen=True)
class Metric:
    """`statistics` [rows, k] float64 are summed over the rows; `score` makes the figure of the sums [k]."""

    statistics: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str

    @property
    def value(self) -> float:
        return float(self.score(self.statistics.sum(0)))

    def of_row(self, row: int) -> float:
        return float(self.score(self.statistics[row]))


@dataclass(frozen=True)
class Comparison:
    """A metric of two systems on the same rows: `difference` is this one less the other one."""

    value: float
    other: float
    difference: float
    interval: list[float]
    p_value: float


def intervals(metrics: dict[str, Metric]) -> dict[str, list[float]]:
    """[lower, upper] bound of the 95 % interval of each metric: without the 1/40 of the resamples at either end."""
    scores = resampled(list(metrics.values()))
    return {name: _middle(column) for name, column in zip(metrics, scores.T, strict=True)}


def compare(these: dict[str, Metric], others: dict[str, Metric]) -> dict[str, Comparison]:
    """Paired bootstrap of every metric that both have: both systems on the same draws of rows.

    `p_value` is two-sided: how often the difference, moved so that its mean is 0, is as large as the one observed.
    """
    names = [name for name in these if name in others]
    scores = resampled([*(these[name] for name in names), *(others[name] for name in names)])
    compared = {}
    for number, name in enumerate(names):
        differences = scores[:, number] - scores[:, len(names) + number]
        differences = differences[~np.isnan(differences)]
        value, other = these[name].value, others[name].value
        beyond = int(np.sum(np.abs(differences - differences.mean()) >= abs(value - other)))
        p_value = (beyond + 1) / (RESAMPLES + 1)
        compared[name] = Comparison(value, other, value - other, _middle(differences), p_value)
    return compared


def resampled(metrics: Sequence[Metric]) -> np.ndarray:
    """[RESAMPLES, metrics] scores of rows drawn with replacement, the same draws for all; all have the same rows."""
    together = np.concatenate([metric.statistics for metric in metrics], axis=1)
    cuts = list(pairwise(np.cumsum([0, *(metric.statistics.shape[1] for metric in metrics)])))
    rows = len(together)
    random = np.random.default_rng(SEED)
    scores = np.empty((RESAMPLES, len(metrics)))
    for draw in range(RESAMPLES):
        drawn = random.choice(rows, size=rows, replace=True)
        sums = np.bincount(drawn, minlength=rows) @ together
        scores[draw] = [metric.score(sums[start:end]) for metric, (start, end) in zip(metrics, cuts, strict=True)]
    return scores


def _middle(scores: np.ndarray) -> list[float]:
    ordered = np.sort(scores[~np.isnan(scores)])
    if not len(ordered):
        return [math.nan, math.nan]
    cut = len(ordered) // 40
    return [float(ordered[cut]), float(ordered[-cut - 1])]
