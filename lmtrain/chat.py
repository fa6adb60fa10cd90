"""Chats -> ids, and which of them the assistant wrote."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError

Messages = list[dict[str, str]]

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""For base models that have none: every turn begins with its role, the assistant's end with the end token."""


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a tokenizer without a chat template the default one; what to say about it, or None."""
    if tokenizer.chat_template:
        return None
    if tokenizer.eos_token is None:
        raise InputError("chat data needs a tokenizer with an end token or with a chat template of its own")
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return "the tokenizer has no chat template: using <|role|> lines, saved with the tokenizer"


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[list[int], np.ndarray]:
    """(ids, mask of the assistant's tokens with the end token of each turn). Raises InputError naming `where`."""
    try:
        if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
            encoded = tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            return encoded["input_ids"], np.array(encoded["assistant_masks"], dtype=bool)
        return _by_prefix(tokenizer, messages, where)
    except InputError:
        raise
    except Exception as error:  # a template is a program of somebody's; whatever it raises, the row is at fault
        raise InputError(f"{where}: the chat template refuses it: {str(error).splitlines()[0]}") from None


def _by_prefix(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[list[int], np.ndarray]:
    """For templates that do not mark the assistant's part: it is what its turn adds to the text before it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if not (text.startswith(before) and text.startswith(after.rstrip()) and len(before) <= len(after)):
            raise InputError(f"{where}: the chat template rewrites earlier turns, so the assistant's part is unknown; "
                             "use one with {% generation %} marks")  # fmt: skip
        spans.append((len(before), len(after.rstrip())))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.array([start for start, _ in encoded["offset_mapping"]])
    mask = np.zeros(len(starts), dtype=bool)
    for begin, end in spans:
        mask |= (starts >= begin) & (starts < end)
    return encoded["input_ids"], mask
