"""What a batch asks of the model: every token with the role that it has in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.preprocessing.batch import IGNORED, Batch, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Token:
    id: int
    role: str
    label: int | None = None
    """The id that is to be predicted here; None where nothing is."""


Lines = dict[str, list[Token]]
"""What the model is given of one row and what it is to predict: `tokens`, or `source`, `decoder_input` and `labels`."""

Seen = tuple[list[int], Lines]
"""Of a row the lengths of the texts in it, and its lines."""


@dataclass(frozen=True)
class Look:
    """How a role is shown: with and without colour, and in words."""

    name: str
    meaning: str
    sample: str
    """Without colour, for the legend."""
    colours: tuple[str, str]
    """Shades that take turns from token to token."""
    around: tuple[str, str] = ("", "")
    """Marks around neighbours of this role."""
    form: str = "{token}"
    """A token of this role by itself; {label} is what is to be predicted in its place."""


GREEN, BLUE, GREY = ("#2f9e44", "#66a80f"), ("#1c7ed6", "#3b9fe8"), ("#7a818c", "#8d949e")
RED, ORANGE, CYAN = ("#e03131", "#e03131"), ("#e8890c", "#e8890c"), ("#0c9aa8", "#0c9aa8")

PAD = Look("pad", "fills the row up; neither read nor predicted", "‹pad ×3›", GREY, ("‹pad ", "›"), "×{count}")


@dataclass(frozen=True)
class View:
    """How the rows of an objective are looked at."""

    explanation: str
    """Two plain sentences on what is learnt."""
    lines: Callable[[list[Row], Batch, PreTrainedTokenizerBase, PreTrainedModel], list[Lines]]
    looks: dict[str, Look]
    measures: dict[str, str] = field(default_factory=lambda: {"tokens": "length"})
    """The lines that a row's length is made of, in the order of Examples.lengths_by_column, and what each is called."""
    titles: dict[str, str] = field(default_factory=dict)
    """Of each line, where a row has several."""


def arrays_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels [rows, length], whether an id is none of the padding)."""
    return batch["input_ids"].numpy(), batch["labels"].numpy(), batch["attention_mask"].numpy() == 1


def tokens_of(ids: np.ndarray, role: np.ndarray, labels: np.ndarray, real: np.ndarray) -> list[list[Token]]:
    """The tokens of every row; all [rows, length]."""
    role = np.where(real, role, "pad")
    return [
        [Token(i, r, None if label == IGNORED else label) for i, r, label in zip(*row, strict=True)]
        for row in zip(ids.tolist(), role.tolist(), labels.tolist(), strict=True)
    ]


def fractions(batches: list[list[Seen]], view: View, places: int) -> tuple[float, float]:
    """(the share of padding in what the model reads, the share of the other tokens that is predicted).

    `places` for tokens, padding included, is what it reads.
    """
    lines = [lines[name] for batch in batches for _, lines in batch for name in view.measures]
    tokens = sum(token.role != "pad" for line in lines for token in line)
    trained = sum(token.label is not None for line in lines for token in line)
    return 1 - tokens / max(places, 1), trained / max(tokens, 1)
