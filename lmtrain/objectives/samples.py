"""Rows in words: what a model makes of them, to look at."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.objectives.generation import decode

PROMPT_TOKENS = 24

Sample = dict[str, str]


RowTexts = dict[str, Any]
"""source, prediction and references of a row that was scored and not generated from."""


def describe_row(
    tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, guessed: np.ndarray, truth: np.ndarray, asked: np.ndarray
) -> RowTexts:
    """The row, the best guess at each of its tokens from the true text before it, and the tokens that were scored."""
    return {
        "source": decode(tokenizer, shown),
        "prediction": decode(tokenizer, guessed[asked]),
        "references": [decode(tokenizer, truth[asked])],
    }
