"""TODO."""

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


def read_predictions(path: str) -> list[dict[str, Any]]:
    """The rows of a predictions.jsonl. Raises InputError."""
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
        raise InputError(f"--against {path}: not what --predictions writes")
    return rows


def compared(
    evaluator: Evaluator, scores: Scores, others: list[dict[str, Any]], path: str | None
) -> dict[str, dict[str, Any]]:
    """Metric -> both values, their difference, its 95 % interval and its p-value, by paired bootstrap.

    Raises InputError where the other model was not scored on the same rows.
    """
    own = list(evaluator.records(scores))
    for number, (mine, other) in enumerate(zip(own, others, strict=True), 1):
        if (mine["source"], mine["references"]) != (other["source"], other["references"]):
            raise InputError(f"--against {path}, line {number}: another row than here; both models have to be scored "
                             "on the same data with the same settings")  # fmt: skip
    comparisons = bootstrap.compare(scores.metrics, _metrics_of(others, evaluator, scores))
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


def _metrics_of(rows: list[dict[str, Any]], evaluator: Evaluator, scores: Scores) -> dict[str, Metric]:
    """The metrics of another model from the rows of its predictions.jsonl."""
    columns = {n: np.array([row[n] for row in rows], dtype=np.float64) for n in scores.row_sums if n in rows[0]}
    made = likelihood_metrics(columns, evaluator.objective, evaluator.signature)
    return made | evaluator.text_scorer.score([row["prediction"] for row in rows]) if evaluator.text_scorer else made
