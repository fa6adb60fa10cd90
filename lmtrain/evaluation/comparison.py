"""Paired comparison of two models on the same rows (`lmtrain eval --against`)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.errors import InputError
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.scores import Scores, likelihood_metrics

Records = list[dict[str, Any]]
"""The lines of a predictions.jsonl."""


def read_predictions(path: str) -> Records:
    """Read a predictions.jsonl. Raises InputError."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
    except OSError as error:
        raise InputError(f"--against {path}: {error.strerror}") from None
    except ValueError:
        rows = []
    if not rows or not all(
        isinstance(row, dict) and {"source", "references", "nll", "tokens"} <= set(row) for row in rows
    ):
        raise InputError(f"--against {path}: not a file that --predictions writes")
    return rows


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
    comparisons = bootstrap.compare(scores.metrics, _metrics_of(others, evaluator, scores))
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


def _metrics_of(records: Records, evaluator: Evaluator, scores: Scores) -> dict[str, Metric]:
    """The metrics of another model from its records."""
    sums = {
        name: np.array([record[name] for record in records], dtype=np.float64)
        for name in scores.row_sums
        if name in records[0]
    }
    computed = likelihood_metrics(sums, evaluator.objective, evaluator.signature)
    if evaluator.text_scorer:
        computed |= evaluator.text_scorer.score([record["prediction"] for record in records])
    return computed
