"""The role of each token of a batch in training, for `preview`."""

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
    """The id to predict at this position, if any."""
    name: str | None = None
    """The label to predict here, if it is no token."""

    @property
    def is_trained(self) -> bool:
        return self.label is not None or self.name is not None


Lines = dict[str, list[Token]]
"""The inputs and labels of one row: `tokens`, or `source`, `decoder_input` and `labels`."""

RowLines = tuple[list[int], Lines]
"""(lengths of the texts in a row, the row's lines)."""


@dataclass(frozen=True)
class Look:
    """How a role is displayed: with and without colour, and in words."""

    name: str
    meaning: str
    sample: str
    """An example without colour, for the legend."""
    colours: tuple[str, str]
    """Two shades that alternate from token to token."""
    around: tuple[str, str] = ("", "")
    """Brackets around consecutive tokens of this role."""
    form: str = "{token}"
    """Format of one token of this role; {label} is the token to predict in its place."""


GREEN, BLUE, GREY = ("#2f9e44", "#66a80f"), ("#1c7ed6", "#3b9fe8"), ("#7a818c", "#8d949e")
RED, ORANGE, CYAN = ("#e03131", "#e03131"), ("#e8890c", "#e8890c"), ("#0c9aa8", "#0c9aa8")

PAD = Look("pad", "fills the row; neither read nor predicted", "‹pad ×3›", GREY, ("‹pad ", "›"), "×{count}")


@dataclass(frozen=True)
class View:
    """How `preview` displays the rows of an objective."""

    explanation: str
    """Two plain sentences on what the model learns."""
    lines: Callable[[list[Row], Batch, PreTrainedTokenizerBase, PreTrainedModel], list[Lines]]
    looks: dict[str, Look]
    measures: dict[str, str] = field(default_factory=lambda: {"tokens": "length"})
    """Line -> label of its length, for the lines that the model reads, in the order of Examples.lengths_by_column."""
    titles: dict[str, str] = field(default_factory=dict)
    """Line -> title, if a row has several lines."""


def arrays_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels, bool mask of the tokens that are not padding), all [rows, length]."""
    return batch["input_ids"].numpy(), batch["labels"].numpy(), batch["attention_mask"].numpy() == 1


def tokens_of(ids: np.ndarray, role: np.ndarray, labels: np.ndarray, real: np.ndarray) -> list[list[Token]]:
    """The tokens of each row. All arrays are [rows, length]; `real` (bool) is False for padding."""
    role = np.where(real, role, "pad")
    return [
        [Token(i, r, None if label == IGNORED else label) for i, r, label in zip(*row, strict=True)]
        for row in zip(ids.tolist(), role.tolist(), labels.tolist(), strict=True)
    ]


def fractions(batches: list[list[RowLines]], view: View, slots: int) -> tuple[float, float]:
    """(share of padding in the `slots` that the model reads, share of predicted tokens among the others).

    `slots` counts token slots, padding included.
    """
    lines = [lines[name] for batch in batches for _, lines in batch for name in view.measures]
    tokens = sum(token.role != "pad" for line in lines for token in line)
    trained = sum(token.is_trained for line in lines for token in line)
    return 1 - tokens / max(slots, 1), trained / max(tokens, 1)
