"""`lmtrain compare`: several runs side by side, and which differences between them are more than chance.

Differences are tested by the paired bootstrap on the rows that all runs were scored on (Koehn, "Statistical significance
tests for machine translation evaluation", EMNLP 2004); the p-values of all tests are adjusted together (Holm, "A simple
sequentially rejective multiple test procedure", Scandinavian Journal of Statistics, 1979).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lmtrain.config.eval import PairEval
from lmtrain.errors import InputError, UsageError, suggestion
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.baseline import differences, setup_of
from lmtrain.evaluation.bootstrap import RESAMPLES, Metric
from lmtrain.evaluation.gates import finite
from lmtrain.evaluation.label_metrics import label_metrics, scheme_of
from lmtrain.evaluation.likelihood import metrics_of_sums
from lmtrain.evaluation.predictions import Records, labels_in, read_predictions, sums_of
from lmtrain.evaluation.text_metrics import build_text_scorer
from lmtrain.metrics import LABEL_METRICS, PER_TOKEN, TEXT_METRICS, base_name, distinct, higher_is_better, qualified
from lmtrain.runs.saved_run import SavedRun
from lmtrain.runtime.console import Console

SIGNIFICANCE = 0.05
MOST_RESAMPLES = 20_000
SAME_TEST = {"perplexity": "eval_loss"}
"""A metric that is a function of another one: one test serves both."""

TOLERANCE = 1e-6
"""Relative difference of a metric in results.json from the same metric of its predictions."""


def compare(runs: Sequence[SavedRun], names: Sequence[str], console: Console) -> dict[str, Any]:
    """What `lmtrain compare --json` prints; `names` are the metrics to compare, by default all that the runs share.

    Raises UsageError for a metric that no run has.
    """
    _check_names(runs, names)
    reasons = incomparable(runs)
    shared = [] if "" in reasons else [name for name in _shared(runs, names) if name not in reasons]
    reason = None if shared else "; ".join(reasons.values()) or "there is no metric that all runs have"
    pairs = _tested(runs, shared, console) if shared else []
    asked = next(iter(names), None) or runs[0].settings.get("eval.best_metric") or "eval_loss"
    ranked = next((name for name in shared if asked in (name, base_name(name))), None)
    return {
        "runs": [_entry(run) for run in runs],
        "differing_settings": differing(runs),
        "comparable": bool(shared),
        "reason": reason,
        "left_out": {name: text for name, text in reasons.items() if name},
        "pairs": pairs,
        "ranking_metric": ranked,
        "ranking": ranking(runs, ranked) if ranked else None,
    }


def _entry(run: SavedRun) -> dict[str, Any]:
    intervals, status = run.results.get("intervals") or {}, run.results.get("status")
    return {
        "path": run.path,
        "status": status,
        "objective": run.results.get("objective"),
        "model": run.results.get("model"),
        "metrics": run.metrics,
        "intervals": intervals,
        "settings": run.settings,
    }


def _check_names(runs: Sequence[SavedRun], names: Collection[str]) -> None:
    known = list(dict.fromkeys(name for run in runs for name in run.metrics))
    for name in names:
        if name not in known:
            raise UsageError(f"--metric {name}: no run has it; they have {', '.join(known)}{suggestion(name, known)}")


def _shared(runs: Sequence[SavedRun], names: Sequence[str]) -> list[str]:
    """The metrics that all runs have, in the order of the first run, of which it is known which direction is better."""
    usable = (name for name in names or distinct(runs[0].metrics) if higher_is_better(name) is not None)
    return [name for name in usable if all(finite(run.metrics.get(name)) is not None for run in runs)]


def incomparable(runs: Sequence[SavedRun]) -> dict[str, str]:
    """Metric -> why it cannot be compared; under an empty name why nothing can be."""
    first = runs[0]
    found: dict[str, str] = {}
    for run in runs[1:]:
        both = f"{first.path} and {run.path}"
        if first.results.get("objective") != run.results.get("objective"):
            return {"": f"{both} have different objectives"}
        before, now = setup_of(first.results), setup_of(run.results)
        if not before.fingerprint or not now.fingerprint:
            return {"": f"{both}: it is not known on which evaluation data both were scored"}
        if before.fingerprint != now.fingerprint:
            return {"": f"{both} were scored on different evaluation data"}
        for name in run.metrics:
            if changed := differences(before, now, [name]):
                found.setdefault(name, f"{name} of {run.path}, beside {first.path}: {'; '.join(changed.values())}")
    return found


def differing(runs: Sequence[SavedRun]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, for those that are not the same in all; None where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def ranking(runs: Sequence[SavedRun], metric: str) -> list[str]:
    """The paths of the runs, best first."""
    sign = -1 if higher_is_better(metric) else 1
    return [run.path for run in sorted(runs, key=lambda run: sign * run.metrics[metric])]


# --- tests -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """The metrics of a run from the lines of its predictions."""

    run: SavedRun
    rows: list[tuple[str, list[str]]]
    """Source and references of each row."""
    tokens: np.ndarray
    metrics: dict[str, Metric]


def _tested(runs: Sequence[SavedRun], names: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """A document for each test: two runs and a metric."""
    names = [name for name in names if _same_test(name) not in names]
    scored = [scores for run in runs if (scores := _scored(run, names, console))]
    tests = [
        (a, b, name)
        for a, b in combinations(scored, 2)
        if _same_rows(a, b, console)
        for name in names
        if name in a.metrics and name in b.metrics
        if base_name(name) not in PER_TOKEN or np.array_equal(a.tokens, b.tokens)
    ]
    if not tests:
        return []
    involved = {(scores.run.path, name): scores.metrics[name] for a, b, name in tests for scores in (a, b)}
    count = min(max(RESAMPLES, 100 * len(tests)), MOST_RESAMPLES)
    if len(tests) > SIGNIFICANCE * MOST_RESAMPLES:
        console.warn(f"{len(tests):,} tests at once find almost nothing; compare fewer runs, or metrics with --metric")
    with console.working(f"resampling {count:,} times"):
        resampled = _resampled(involved, count)
    found = [
        bootstrap.compared(
            a.metrics[name].value, b.metrics[name].value, resampled[a.run.path, name], resampled[b.run.path, name]
        )
        for a, b, name in tests
    ]
    adjusted = bootstrap.holm([comparison.p_value for comparison in found])
    return [
        {
            "a": a.run.path,
            "b": b.run.path,
            "metric": name,
            "difference": comparison.difference,
            "interval": comparison.interval,
            "p": comparison.p_value,
            "p_adjusted": p_adjusted,
            "significant": p_adjusted < SIGNIFICANCE,
        }
        for (a, b, name), comparison, p_adjusted in zip(tests, found, adjusted, strict=True)
    ]


def _same_test(name: str) -> str | None:
    """The metric of the same evaluation set whose test serves this one, too."""
    other = SAME_TEST.get(base_name(name))
    return other and qualified(_set_of(name), other)


def _set_of(name: str) -> str:
    """The evaluation set of a metric; empty if it has no name."""
    return name.rpartition(".")[0]


def _resampled(metrics: dict[tuple[str, str], Metric], count: int) -> dict[tuple[str, str], np.ndarray]:
    """Metrics by run and name -> [count] scores; those of one evaluation set share the rows that are drawn."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for name in dict.fromkeys(_set_of(metric) for _, metric in metrics):
        alike = {key: metric for key, metric in metrics.items() if _set_of(key[1]) == name}
        found |= zip(alike, bootstrap.resample(list(alike.values()), count).T, strict=True)
    return found


def _scored(run: SavedRun, names: Collection[str], console: Console) -> Scored | None:
    """The metrics of a run by row; None, with a warning, where its predictions are missing or belong to other results."""
    path = run.predictions
    if path is None:
        console.warn(f"{run.path}: no predictions.jsonl, so its differences are not tested; --predictions writes one")
        return None
    try:
        records = read_predictions(path)
    except InputError as error:
        console.warn(f"{error}; its differences are not tested")
        return None
    found: dict[str, Metric] = {}
    for name in dict.fromkeys(map(_set_of, names)):
        own = [record for record in records if record.get("set", "") == name]
        bases = [base_name(metric) for metric in names if _set_of(metric) == name]
        found |= (
            {qualified(name, base): metric for base, metric in _metrics_of(own, run, bases).items()} if own else {}
        )
    wrong = [n for n, m in found.items() if not np.isclose(m.value, run.metrics[n], rtol=TOLERANCE, atol=1e-9)]
    if wrong:
        console.warn(
            f"{path}: gives another {wrong[0]} than the results of {run.path}; its differences are not tested"
        )
        return None
    rows = [(record["source"], record["references"]) for record in records]
    return Scored(run, rows, np.array([record["tokens"] for record in records]), found)


def _metrics_of(records: Records, run: SavedRun, names: Collection[str]) -> dict[str, Metric]:
    found = metrics_of_sums(sums_of(records), names, "")
    if any(name in LABEL_METRICS for name in names):
        entities = any(name.startswith("entity") for name in names)
        scheme = "entities" if entities else scheme_of(run.results.get("data", {}).get("kind", ""), ())
        found |= {n: m for n, m in label_metrics(*labels_in(records), "", scheme).items() if n in names}
    texts = [name for name in names if name in TEXT_METRICS]
    if texts and "prediction" in records[0]:
        section = PairEval(
            metric=texts,
            bleu_tokenize=run.settings.get("eval.bleu_tokenize"),
            rouge_tokenize=run.settings.get("eval.rouge_tokenize"),
        )
        scorer = build_text_scorer([record["references"] for record in records], section)
        found |= scorer.score([record["prediction"] for record in records])
    return found


def _same_rows(a: Scored, b: Scored, console: Console) -> bool:
    if a.rows == b.rows:
        return True
    console.warn(f"{a.run.path} and {b.run.path}: their predictions are of different rows; not tested")
    return False
