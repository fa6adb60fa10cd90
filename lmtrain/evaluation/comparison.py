"""Paired comparison of two models on the same rows (`lmtrain eval --against`)."""

from dataclasses import asdict
from typing import Any

import numpy as np

from lmtrain.errors import InputError
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.likelihood import likelihood_metrics
from lmtrain.evaluation.predictions import Records, sums_of
from lmtrain.evaluation.scores import Scores
from lmtrain.metrics import PER_TOKEN


def compare(evaluator: Evaluator, scores: Scores, others: Records, path: str | None) -> dict[str, dict[str, Any]]:
    """Metric -> bootstrap.Comparison as a dictionary; `others` are the records of the other model, from `path`.

    Raises InputError where the other model was scored on other rows.
    """
    for number, (own, other) in enumerate(zip(evaluator.records(scores), others, strict=True), 1):
        if (own["source"], own["references"]) != (other["source"], other["references"]):
            raise InputError(
                f"--against {path}, line {number}: another row than here; score both models on the same data with the "
                "same settings"
            )
    these, tokens = scores.metrics, [record["tokens"] for record in others]
    if not np.array_equal(scores.row_sums["tokens"], tokens):
        these = {name: metric for name, metric in these.items() if name not in PER_TOKEN}
        evaluator.console.warn(
            f"--against {path}: another tokenizer or other settings, so metrics per token are not compared"
        )
    comparisons = bootstrap.compare(these, _metrics_of(others, evaluator, scores)) if these else {}
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


def _metrics_of(records: Records, evaluator: Evaluator, scores: Scores) -> dict[str, Metric]:
    """The metrics of another model from its records."""
    computed = likelihood_metrics(sums_of(records), evaluator.objective, evaluator.signature)
    if evaluator.text_scorer and "prediction" in records[0]:
        computed |= evaluator.text_scorer.score([record["prediction"] for record in records])
    return computed
