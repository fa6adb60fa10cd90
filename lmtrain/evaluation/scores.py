"""TODO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain import __version__, metrics
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing.ragged import Ragged

Columns = dict[str, np.ndarray]
"""Per row of the examples: nll, tokens, correct, correct_top5, bytes, pseudo_nll, pseudo_tokens [rows]."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    metrics: dict[str, Metric]
    others: dict[str, tuple[float, str]]
    """(value, signature) of metrics that are not ours, which have neither rows nor intervals."""
    columns: Columns
    guesses: Ragged
    """Of each row the best guess at every supervised token, from its start on; what follows is 0."""
    predictions: list[str] | None = None
    """Of each row the text that was generated."""
    notes: tuple[str, ...] = ()
    generation: dict[str, Any] | None = None

    @property
    def figures(self) -> dict[str, float]:
        ours = {name: metric.value for name, metric in self.metrics.items()}
        return ours | {name: value for name, (value, _) in self.others.items()}

    @property
    def signatures(self) -> dict[str, str]:
        ours = {name: metric.signature for name, metric in self.metrics.items()}
        return ours | {name: told for name, (_, told) in self.others.items()}

    def intervals(self) -> dict[str, list[float]]:
        """95 % bootstrap intervals; none of a single row, which says nothing of others."""
        return bootstrap.intervals(self.metrics) if len(self.columns["nll"]) > 1 else {}


def metrics_document(scores: Scores) -> dict[str, Any]:
    """The part of results.json that an evaluation makes."""
    return {
        "metrics": scores.figures,
        "signatures": scores.signatures,
        "intervals": scores.intervals(),
        **({"generation": scores.generation} if scores.generation else {}),
    }


def likelihood_metrics(columns: Columns, objective: Objective, signature: str) -> dict[str, Metric]:
    """The figures that are made of sums over rows; those whose sums were not taken are absent."""
    made = {
        "eval_loss": ("nll", "tokens", metrics.mean),
        "perplexity": ("nll", "tokens", metrics.perplexity),
        "bits_per_byte": ("nll", "bytes", metrics.bits_per_byte),
        objective.accuracy: ("correct", "tokens", metrics.mean),
        objective.top5: ("correct_top5", "tokens", metrics.mean),
        "pseudo_perplexity": ("pseudo_nll", "pseudo_tokens", metrics.perplexity),
    }
    return {
        name: _ratio(columns[above], columns[below], formula, signature)
        for name, (above, below, formula) in made.items()
        if name and above in columns and below in columns
    }


def _ratio(above: np.ndarray, below: np.ndarray, formula: Any, signature: str) -> Metric:
    return Metric(np.stack([above, below], axis=1), lambda sums: formula(float(sums[0]), float(sums[1])), signature)


def signature(lengths: Mapping[str, int], settings: Mapping[str, str | int | bool | None], precision: str) -> str:
    """How likelihood metrics were computed: `max_length:512|packing:yes|precision:fp32|version:lmtrain-0.1.0`.

    `settings` are those of the objective; None: does not apply.
    """
    parts = {**lengths, **settings, "precision": precision, "version": f"lmtrain-{__version__}"}
    words = {name: ("no", "yes")[value] if isinstance(value, bool) else value for name, value in parts.items()}
    return "|".join(f"{name}:{value}" for name, value in words.items() if value is not None)


def plain_number(number: float) -> float | int:
    return int(number) if float(number).is_integer() else float(number)
