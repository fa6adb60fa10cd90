"""Metrics loaded through Hugging Face `evaluate`: by Hub name or from the path of a module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain import metrics
from lmtrain.errors import InputError, UsageError, suggestion


def load(name: str) -> Any:
    """The evaluate.EvaluationModule called `name`: a Hub name, or the path of a module.

    Raises UsageError where there is none, InputError where it cannot be loaded.
    """
    is_path = name.endswith(".py") or "/" in name
    if is_path and not Path(name).exists():
        raise UsageError(f"--metric {name}: no such file{suggestion(name, metrics.TEXT_METRICS)}")
    import evaluate

    try:
        return evaluate.load(str(Path(name).resolve()) if is_path else name, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError) as error:
        hint = suggestion(name, metrics.TEXT_METRICS) or f"; offline there are {', '.join(metrics.TEXT_METRICS)}"
        raise UsageError(f"--metric {name}: not a metric of lmtrain, and not found on the Hub{hint}") from error
    except Exception as error:  # the module is a program that may raise anything
        raise InputError(f"--metric {name}: cannot be loaded: {type(error).__name__}: {error}") from error


def compute(
    name: str, metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The numbers that a metric returns. Raises InputError where it refuses the texts."""
    single = all(len(texts) == 1 for texts in references)
    targets = [texts[0] for texts in references] if single else [list(texts) for texts in references]
    try:
        result = metric.compute(predictions=list(predictions), references=targets)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--metric {name}: refuses these texts: {reason}") from error
    return {key: float(value) for key, value in result.items() if isinstance(value, int | float | np.number)}
