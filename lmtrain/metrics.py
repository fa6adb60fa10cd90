"""The figures that there are: their names, which way is better, and the formulas of those that are made of sums.

docs/metrics.md says of each how it is defined and where the definition comes from.
"""

import math

TEXT_METRICS = (
    "bleu", "chrf", "chrfpp", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "f1",
)  # fmt: skip
"""Figures of generated text, all of them between 0 and 100 (TER may be more)."""

PROBE_METRICS = ("accuracy", "macro_f1", "entity_precision", "entity_recall", "entity_f1")
"""Figures of `lmtrain probe`, between 0 and 1."""

HIGHER_IS_BETTER = frozenset(
    ["token_accuracy", "masked_accuracy", "masked_accuracy_top5", *TEXT_METRICS, *PROBE_METRICS]
) - {"ter"}  # fmt: skip

LOWER_IS_BETTER = frozenset(["eval_loss", "perplexity", "bits_per_byte", "pseudo_perplexity", "ter"])


def trainer_name(name: str) -> str:
    """A figure's name as Trainer's callbacks want it: `perplexity` -> `eval_perplexity`, `eval_loss` as it is."""
    return name if name == "eval_loss" else f"eval_{name}"


def plain_name(name: str) -> str:
    """The name back again; names that are no figure's stay as they are."""
    return name if name == "eval_loss" else name.removeprefix("eval_")


def mean(total: float, count: float) -> float:
    """NaN of nothing: a row, or a draw of rows, may hold no token that is scored."""
    return total / count if count else math.nan


def perplexity(nll: float, tokens: float) -> float:
    """Exp of the mean negative log-likelihood (nats) per token."""
    return math.exp(min(mean(nll, tokens), 700.0))  # above that a float is infinite, which JSON cannot say


def bits_per_byte(nll: float, size: float) -> float:
    """Negative log-likelihood (nats) of a text of `size` UTF-8 bytes, in bits per byte.

    Comparable across tokenizers, and with the size of a compressed file.
    """
    return mean(nll / math.log(2), size)
