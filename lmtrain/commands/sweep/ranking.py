"""The order of the settings of a sweep, and which differences are within the noise of the seeds."""

import json
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance
from typing import Any

from lmtrain.metrics import higher_is_better

Entry = dict[str, Any]
"""A trial as sweep.json lists it."""


def ranking(trials: Sequence[Entry], metric: str) -> list[Entry]:
    """Settings, best first: {settings, mean, values by seed, deviation, trials}, and `within_noise` of the best.

    A difference of two means is within noise if it is smaller than the 95 % bound of Student's t for it, with the variance
    between seeds pooled over all settings (as in an analysis of variance). With a single seed each, nobody knows.
    """
    groups = _groups(trials, metric)
    sign = -1 if higher_is_better(metric) else 1
    ordered = sorted(groups.values(), key=lambda group: sign * fmean(_values(group, metric)))
    spread = _pooled([_values(group, metric) for group in ordered])
    rows = []
    for group in ordered:
        values = _values(group, metric)
        rows.append(
            {
                "settings": group[0]["settings"],
                "metric": metric,
                "mean": fmean(values),
                "values": values,
                "deviation": math.sqrt(variance(values)) if len(values) > 1 else None,
                "within_noise": _within(values, _values(ordered[0], metric), spread),
                "paths": [trial["path"] for trial in group],
            }
        )
    return rows


def _groups(trials: Sequence[Entry], metric: str) -> dict[str, list[Entry]]:
    """The completed trials that have the metric, by their settings."""
    groups: dict[str, list[Entry]] = {}
    seen = set()  # the same settings with the same seed give the same value, which is not another one
    for trial in trials:
        key = json.dumps([trial["settings"], trial.get("seed")], sort_keys=True)
        if trial.get("seed") is not None and key in seen:
            continue
        seen.add(key)
        if trial["status"] == "completed" and trial["metrics"].get(metric) is not None:
            groups.setdefault(json.dumps(trial["settings"], sort_keys=True), []).append(trial)
    return groups


def _values(group: Sequence[Entry], metric: str) -> list[float]:
    return [trial["metrics"][metric] for trial in group]


def _pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """(the variance between seeds, its degrees of freedom); None where no setting has two seeds."""
    several = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    return sum(variance(values) * (len(values) - 1) for values in several) / freedom, freedom


def _within(values: Sequence[float], best: Sequence[float], spread: tuple[float, int] | None) -> bool | None:
    """Whether the means of two settings differ by no more than seeds do; None where it is not known."""
    if spread is None:
        return None
    error = math.sqrt(spread[0] * (1 / len(values) + 1 / len(best)))
    return abs(fmean(values) - fmean(best)) <= t_bound(spread[1]) * error


def t_bound(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, exact for 1 and 2 degrees of freedom.

    For more the expansion of Abramowitz and Stegun 26.7.5, whose error is below 0.5 %.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
