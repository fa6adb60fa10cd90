"""The ids of a tokenizer: how large a table of them is, and which one stands for what the tokenizer does not know."""

from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase


def vocabulary_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All ids, sorted. There may be gaps between them."""
    return _ids(tokenizer, len(tokenizer))


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of rows that a table indexed by id needs: the largest id + 1, which may be more than the entries."""
    ids = vocabulary_ids(tokenizer)
    return int(ids[-1]) + 1 if len(ids) else 0


@lru_cache(maxsize=4)
def _ids(tokenizer: PreTrainedTokenizerBase, size: int) -> np.ndarray:
    """`size` is the number of entries, which makes the cache notice added tokens."""
    return np.unique(np.fromiter(tokenizer.get_vocab().values(), np.int64))


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the unknown token; None where there is none, or where it is a mark such as GPT-2's end token.

    Such a tokenizer knows every byte, so it never needs the unknown token.
    """
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return None if tokenizer.unk_token_id in marks else tokenizer.unk_token_id
