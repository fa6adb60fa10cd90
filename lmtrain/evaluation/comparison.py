"""Paired comparison of two models on the same rows (`lmtrain eval --against`)."""

from dataclasses import asdict
from typing import Any

import numpy as np

from lmtrain.errors import InputError
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.predictions import Records, labels_in, sums_of
from lmtrain.evaluation.records import records
from lmtrain.evaluation.scores import Scores, by_name
from lmtrain.metrics import PER_TOKEN


def compare(evaluator: Evaluator, scores: Scores, others: Records, path: str | None) -> dict[str, dict[str, Any]]:
    """Metric -> bootstrap.Comparison as a dictionary; `others` are the records of the other model, from `path`.

    Raises InputError where the other model was scored on other rows.
    """
    for number, (own, other) in enumerate(zip(records(evaluator, scores), others, strict=True), 1):
        if (own["source"], own["references"]) != (other["source"], other["references"]):
            raise InputError(
                f"--against {path}, line {number}: another row than here; score both models on the same data with the "
                "same settings"
            )
    same_tokens = np.array_equal(scores.row_sums["tokens"], [record["tokens"] for record in others])
    if not same_tokens:
        evaluator.console.warn(
            f"--against {path}: another tokenizer or other settings, so metrics per token are not compared"
        )
    sums = sums_of(others)
    outputs = [record["prediction"] for record in others if "prediction" in record]
    found = {}
    for name, rows in evaluator.sets.items():
        these = scores.sets[name].metrics
        if not same_tokens:
            these = {metric: value for metric, value in these.items() if metric not in PER_TOKEN}
        theirs = rows.likelihood(sums, evaluator.section.metric_names, evaluator.signature)
        if evaluator.scheme and evaluator.scheme != "answers":
            theirs |= rows.of_labels(*labels_in(others), evaluator.signature, evaluator.scheme)
        theirs |= rows.of_outputs(outputs) if outputs else {}
        found[name] = bootstrap.compare(these, theirs) if these else {}
    return {name: asdict(comparison) for name, comparison in by_name(found).items()}
