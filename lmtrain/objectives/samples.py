"""Rows as text: samples of what the model writes, and scored rows."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.objectives.generation import decode

PROMPT_TOKENS = 24
"""Tokens of the prompt that a causal sample continues."""

Sample = dict[str, str]
"""`input`, `output` and `reference`."""

RowTexts = dict[str, Any]
"""`source`, `prediction` and `references` of a row that was scored, not generated."""


def describe_row(
    tokenizer: PreTrainedTokenizerBase,
    shown: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    scored: np.ndarray,
) -> RowTexts:
    """The row, its predictions under teacher forcing, and the scored tokens; all arrays [length], `scored` bool."""
    return {
        "source": decode(tokenizer, shown),
        "prediction": decode(tokenizer, predicted[scored]),
        "references": [decode(tokenizer, truth[scored])],
    }
