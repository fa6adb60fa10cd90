"""Faster CPU kernels for two functions of a model: dropout, and GPT-2's approximation of GELU.

The functions stay the same up to rounding; dropout draws other random numbers. `--kernels off` uses none of this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmtrain.modeling.cpu_attention import attention
from lmtrain.modeling.cpu_documents import find_documents
from lmtrain.modeling.cpu_dropout import dropout


def fuse_gelu(network: PreTrainedModel) -> None:
    """Replace `gelu_new` by torch's kernel of the same tanh approximation: one pass over memory instead of eight."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Within this context, dropout on a CPU draws 16 random bits per element, also inside of attention.

    Replaces `torch.nn.functional.dropout` and transformers' attention function "sdpa". On exit both are again what they
    were on entry.
    """
    torch_dropout, sdpa = F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"]
    F.dropout = partial(dropout, torch_dropout, _note)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(attention, sdpa, _note)
    try:
        yield
    finally:
        F.dropout = torch_dropout
        ALL_ATTENTION_FUNCTIONS.pop("sdpa")  # uncovers transformers' global entry,
        if ALL_ATTENTION_FUNCTIONS.get("sdpa") is not sdpa:  # unless that was covered on entry
            ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa
        find_documents.cache_clear()


_notes: dict[str, None] = {}


def _note(sentence: str) -> None:
    _notes[sentence] = None


def fallbacks() -> list[str]:
    """One sentence for each kind of call that the faster kernels left to the original ones; each is returned once."""
    sentences = [*_notes]
    _notes.clear()
    return sentences
