"""`lmtrain eval` as the tests call it."""

import json
from pathlib import Path
from typing import Any

from conftest import lmtrain

SHARE_METRIC = '''"""The share of exact answers."""
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(map(str.__eq__, predictions, references)) / len(references), "rows": len(references)}
'''
"""A module that `evaluate` loads: the share of exact answers."""


def evaluated(*arguments: Any) -> dict[str, Any]:
    outcome = lmtrain("eval", *arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
