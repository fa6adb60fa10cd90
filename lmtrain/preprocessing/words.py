"""Sentences of words, of which each has a tag: which token a word begins with."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError


def joined(words: Sequence[str]) -> str:
    """The sentence, with a space between two words."""
    return " ".join(words)


def check_is_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a tokenizer that does not tell the characters of each token."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no fast version, which tagged words need: only a "
            "fast one gives the characters of each token"
        )


def first_tokens(words: Sequence[str], spans: Sequence[Sequence[int]]) -> np.ndarray:
    """[words] position of the first token of each word of a sentence joined by spaces; -1 if there is none.

    `spans` are the (start, end) characters of the tokens. The tokenizer's own word ids would not do: tokenizers split
    words differently (some at hyphens), and byte-level ones need a space before the first word.
    """
    positions_of_words = np.full(len(words), -1)
    token = start = 0
    for index, word in enumerate(words):
        end = start + len(word)
        while token < len(spans) and (spans[token][1] <= start or spans[token][0] == spans[token][1]):
            token += 1
        if token < len(spans) and spans[token][0] < end:
            positions_of_words[index] = token
        start = end + 1
    return positions_of_words
