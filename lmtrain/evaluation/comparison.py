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
from lmtrain.evaluation.gates import finite
from lmtrain.evaluation.scores import Scores, likelihood_metrics
from lmtrain.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, TEXT_METRICS

Records = list[dict[str, Any]]
"""The lines of a predictions.jsonl."""

NEEDED = {"source", "references", "nll", "tokens"}
SUMS = ("nll", "tokens", "correct", "correct_top5", "bytes", "pseudo_nll", "pseudo_tokens")
PER_TOKEN = (HIGHER_IS_BETTER | LOWER_IS_BETTER) - {*TEXT_METRICS, "bits_per_byte"}
"""Metrics that compare only models with the same tokens."""


def read_predictions(path: str) -> Records:
    """Read a predictions.jsonl. Raises InputError."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
    except OSError as error:
        raise InputError(f"--against {path}: {error.strerror}") from None
    except ValueError:
        rows = []
    if not rows:
        raise InputError(f"--against {path}: not a file that --predictions writes")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not set(row) >= NEEDED or set(row) != set(rows[0]):
            raise InputError(f"--against {path}, line {number}: not a line of a file that --predictions writes")
        if odd := [name for name in SUMS if name in row and finite(row[name]) is None]:
            raise InputError(f"--against {path}, line {number}: {odd[0]} is not a finite number")
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
    sums = {
        name: np.array([record[name] for record in records], dtype=np.float64)
        for name in scores.row_sums
        if name in records[0]
    }
    computed = likelihood_metrics(sums, evaluator.objective, evaluator.signature)
    if evaluator.text_scorer and "prediction" in records[0]:
        computed |= evaluator.text_scorer.score([record["prediction"] for record in records])
    return computed
