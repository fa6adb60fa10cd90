"""Figures from sums: what each is, and which way is better."""

import math

HIGHER_IS_BETTER = frozenset(
    ["token_accuracy", "masked_accuracy", "masked_accuracy_top5", "exact_match"]
)  # fmt: skip


def trainer_name(name: str) -> str:
    """A figure's name as Trainer's callbacks want it: `perplexity` -> `eval_perplexity`, `eval_loss` as it is."""
    return name if name == "eval_loss" else f"eval_{name}"


def plain_name(name: str) -> str:
    """The name back again; names that are no figure's stay as they are."""
    return name if name == "eval_loss" else name.removeprefix("eval_")


def perplexity(loss: float) -> float:
    """Exp of the mean negative log-likelihood per token, in nats."""
    return math.exp(min(loss, 700.0))  # above that a float is infinite, which JSON cannot say


def bits_per_byte(nll: float, size: int) -> float:
    """Negative log-likelihood (nats) of a text of `size` UTF-8 bytes, in bits per byte.

    Comparable across tokenizers, and with the size of a compressed file.
    """
    return nll / math.log(2) / size


def exact_match(predictions: list[str], references: list[str]) -> float:
    """The share of predictions that are their reference, white space around it aside."""
    hits = sum(p.strip() == r.strip() for p, r in zip(predictions, references, strict=True))
    return hits / max(len(predictions), 1)
