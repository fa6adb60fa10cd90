"""What an evaluation found: sums over rows, the metrics computed from them, and how to name how they were computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.likelihood import RowSums
from lmtrain.metrics import qualified
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.version import __version__

Value = TypeVar("Value")


@dataclass(frozen=True)
class SetScores:
    """The metrics of one evaluation set."""

    metrics: dict[str, Metric]
    custom: dict[str, tuple[float, str]] = field(default_factory=dict)
    """(value, signature) of metrics loaded through `evaluate`, which have no rows and so no intervals."""

    @property
    def values(self) -> dict[str, float]:
        own = {name: metric.value for name, metric in self.metrics.items()}
        return own | {name: value for name, (value, _) in self.custom.items()}

    @property
    def signatures(self) -> dict[str, str]:
        own = {name: metric.signature for name, metric in self.metrics.items()}
        return own | {name: signature for name, (_, signature) in self.custom.items()}

    def intervals(self) -> dict[str, list[float]]:
        """95 % bootstrap intervals; none for a single row, which says nothing about others."""
        rows = min(len(metric.statistics) for metric in self.metrics.values())
        return bootstrap.intervals(self.metrics) if rows > 1 else {}


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation, the same on every process."""

    sets: dict[str, SetScores]
    """By the name of the evaluation set, in the order of the recipe; the name is empty for data without one."""
    row_sums: RowSums
    predicted_tokens: Ragged
    """The most likely token at each supervised position of a row, from its start on; zeros follow."""
    outputs: list[str] | None = None
    """The generated text of each row."""
    notes: tuple[str, ...] = ()
    generation: dict[str, Any] | None = None
    """The arguments of `generate`, with `hit_cap`, the share of outputs that reached the limit of tokens."""

    @property
    def values(self) -> dict[str, float]:
        return by_name({name: scores.values for name, scores in self.sets.items()})

    @property
    def signatures(self) -> dict[str, str]:
        return by_name({name: scores.signatures for name, scores in self.sets.items()})

    def intervals(self) -> dict[str, list[float]]:
        """95 % bootstrap intervals; none for a set of a single row, which says nothing about others."""
        return by_name({name: scores.intervals() for name, scores in self.sets.items()})


def by_name(sets: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Set -> metric -> value as one dictionary: `test-ko.bleu`. The metrics of the first set have their plain names, too."""
    first = dict(next(iter(sets.values())))
    return first | {qualified(name, m): value for name, each in sets.items() for m, value in each.items()}


def metrics_document(scores: Scores) -> dict[str, Any]:
    """The keys of results.json that an evaluation fills."""
    return {
        "metrics": scores.values,
        "signatures": scores.signatures,
        "intervals": scores.intervals(),
        **({"generation": scores.generation} if scores.generation else {}),
    }


def signature(lengths: Mapping[str, int], settings: Mapping[str, str | int | bool | None], precision: str) -> str:
    """How likelihood metrics were computed: `max_length:512|packing:yes|precision:fp32|version:lmtrain-0.1.0`.

    `settings` are those of the objective; None: does not apply.
    """
    parts = {**lengths, **settings, "precision": precision, "version": f"lmtrain-{__version__}"}
    words = {name: ("no", "yes")[value] if isinstance(value, bool) else value for name, value in parts.items()}
    return "|".join(f"{name}:{value}" for name, value in words.items() if value is not None)


def plain_number(number: float) -> float | int:
    """An int for a whole number, so that JSON shows counts without a fraction."""
    return int(number) if float(number).is_integer() else float(number)
