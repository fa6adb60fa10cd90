"""The files that --predictions writes, read again: a line of JSON for each row, with its sums."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.data.labels import Labels, labels_of_row
from lmtrain.errors import InputError
from lmtrain.evaluation.gates import finite
from lmtrain.evaluation.likelihood import RowSums

Records = list[dict[str, Any]]
"""The lines of a predictions.jsonl."""

NEEDED = {"source", "references", "nll", "tokens"}
SUMS = ("nll", "tokens", "correct", "correct_top5", "bytes", "pseudo_nll", "pseudo_tokens")


def read_predictions(path: str | Path, flag: str = "") -> Records:
    """Read a predictions.jsonl; `flag` named it. Raises InputError."""
    where = f"{flag}{path}"
    try:
        with Path(path).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except ValueError:
        rows = []
    if not rows:
        raise InputError(f"{where}: not a file that --predictions writes")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not set(row) >= NEEDED or set(row) != set(rows[0]):
            raise InputError(f"{where}, line {number}: not a line of a file that --predictions writes")
        if odd := [name for name in SUMS if name in row and finite(row[name]) is None]:
            raise InputError(f"{where}, line {number}: {odd[0]} is not a finite number")
    return rows


def labels_in(records: Records) -> tuple[Labels, Labels]:
    """(the true labels of each row, those that were predicted), of a model that gives labels or numbers."""
    true = [labels_of_row(record["references"][0]) for record in records]
    return true, [labels_of_row(record["prediction"]) for record in records]


def sums_of(records: Records) -> RowSums:
    """The sums of each row, by name."""
    known = [name for name in SUMS if name in records[0]]
    return {name: np.array([record[name] for record in records], dtype=np.float64) for name in known}
