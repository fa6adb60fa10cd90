"""The metrics: their names, which direction is better, and the formulas of those computed from sums.

docs/metrics.md gives the definition and the source of each.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

TEXT_METRICS = ("bleu", "chrf", "chrfpp", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "f1")
"""Metrics of generated text, in percent (TER may exceed 100)."""

PROBE_METRICS = ("accuracy", "macro_f1", "entity_precision", "entity_recall", "entity_f1")
"""Metrics of `lmtrain probe`, between 0 and 1."""

LABEL_METRICS = (*PROBE_METRICS, "micro_f1", "pearson", "spearman")
"""Metrics of predicted labels, and of numbers."""

HIGHER_IS_BETTER = frozenset(
    ["token_accuracy", "masked_accuracy", "masked_accuracy_top5", *TEXT_METRICS, *LABEL_METRICS]
) - {"ter"}

LOWER_IS_BETTER = frozenset(["eval_loss", "perplexity", "bits_per_byte", "pseudo_perplexity", "ter"])

PER_TOKEN = (HIGHER_IS_BETTER | LOWER_IS_BETTER) - {*TEXT_METRICS, "bits_per_byte"}
"""Metrics that compare only models with the same tokens."""


def qualified(evaluation_set: str, name: str) -> str:
    """The name of a metric of a named evaluation set: `test-ko.bleu`; without a name of the set, the metric's own."""
    return f"{evaluation_set}.{name}" if evaluation_set else name


def base_name(name: str) -> str:
    """The inverse of `qualified`: `test-ko.bleu` -> `bleu`."""
    return name.rpartition(".")[2]


def distinct(values: Mapping[str, Value]) -> dict[str, Value]:
    """Metrics without those of the first named set under their plain names, which repeat `dev.bleu` as `bleu`."""
    repeated = {base_name(name) for name in values if "." in name}
    return {name: value for name, value in values.items() if name not in repeated}


def higher_is_better(name: str) -> bool | None:
    """Whether more of a metric is better, of any evaluation set; None where it is not known."""
    base = base_name(name)
    return True if base in HIGHER_IS_BETTER else False if base in LOWER_IS_BETTER else None


def trainer_name(name: str) -> str:
    """The name of a metric in Trainer: `perplexity` -> `eval_perplexity`; `eval_loss` stays."""
    return name if name == "eval_loss" else f"eval_{name}"


def plain_name(name: str) -> str:
    """The inverse of `trainer_name`; other names stay."""
    return name if name == "eval_loss" else name.removeprefix("eval_")


def mean(total: float, count: float) -> float:
    """The mean; NaN if `count` is 0, because a row or a bootstrap sample may have no scored token."""
    return total / count if count else math.nan


def perplexity(nll: float, tokens: float) -> float:
    """Exp of the mean negative log-likelihood (in nats) per token."""
    return math.exp(min(mean(nll, tokens), 700.0))  # exp of more overflows to infinity, which JSON cannot represent


def bits_per_byte(nll: float, size: float) -> float:
    """Negative log-likelihood (in nats) of a text of `size` UTF-8 bytes, in bits per byte.

    It is comparable across tokenizers, and with the size of a compressed file.
    """
    return mean(nll / math.log(2), size)
