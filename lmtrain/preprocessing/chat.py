"""Chats -> ids, and which of them the assistant wrote.

What is trained of an answer is what the model has to write when it is asked: all that follows the header of the turn
(the generation prompt), as far as the end marker and with it. A line break after the end marker is nobody's to write.

A text is tokenised as a whole, but no token reaches from a header into its answer: where one would, the text is parted
there, so that the ids in front of an answer are those of the prompt alone. A token that reaches out of an answer is
trained.
"""

import json
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError
from lmtrain.preprocessing.chat_template import Messages, Span, added_tokens, answers, ending, render_chat

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


def notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What to say about how answers end under the tokenizer's chat template. Raises InputError if they never could."""
    how = ending(tokenizer, tokenizer.get_chat_template())
    if how is None:
        return []
    if not how.marker:
        return [f"the chat template ends no answer: {_end_token(tokenizer)} is put behind the last one of every chat"]
    if how.unmarked:
        return [f"the chat template's generation marks leave out {how.unmarked!r}, which ends an answer: "
                "it is trained all the same"]  # fmt: skip
    return []


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token, and the one that the template's end marker is, if one is."""
    how = ending(tokenizer, tokenizer.get_chat_template())
    marker = how.marker or how.unmarked if how else ""
    known = {text: index for index, text in added_tokens(tokenizer, len(tokenizer)).items()}
    return [index for index in dict.fromkeys((tokenizer.eos_token_id, known.get(marker))) if index is not None]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[list[int], np.ndarray]:
    """(ids, mask of the assistant's tokens with the end token of each turn). Raises InputError naming `where`.

    Under a template that ends no answer the chat ends with its last answer and the tokenizer's end token.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{where}: a chat needs a tokenizer that knows where in a text its tokens lie; this one has no "
                         "fast form")  # fmt: skip
    text, spans, ended = answers(tokenizer, messages, where)
    if not ended:
        text = text[: spans[-1][1]]
    ids, mask = _tokenised(tokenizer, text, spans)
    if not ended:
        _end_token(tokenizer)
        ids, mask = [*ids, tokenizer.eos_token_id], np.append(mask, True)
    return ids, mask


def prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> list[int]:
    """The ids that stand before the next answer, with earlier answers tokenised as in training. Raises InputError."""
    text = render_chat(tokenizer, tokenizer.get_chat_template(), where, messages, add_generation_prompt=True)
    spans: list[Span] = []
    earlier = [message.get("content") for message in messages if message.get("role") == "assistant"]
    # Where answers cannot be told apart nothing was trained on them, and nothing has to agree.
    if tokenizer.is_fast and earlier and all(isinstance(content, str) for content in earlier):
        with suppress(InputError):
            trained, spans, _ = answers(tokenizer, messages, where)
            spans = [span for span in spans if text.startswith(trained[: span[0]])]
    return (
        _tokenised(tokenizer, text, spans)[0]
        if spans
        else tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    )


def _end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token_id is None:
        raise InputError("the chat template ends no answer and the tokenizer has no end token, so a model could never "
                         "stop; use a chat template with an end marker")  # fmt: skip
    return tokenizer.eos_token


# --- text -> ids -----------------------------------------------------------------------------------------------------
Cut = Callable[[str], tuple[list[int], list[Span]]]


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span]) -> tuple[list[int], np.ndarray]:
    """(ids of the text, whether each is of a span), parted at the beginning of a span where a token would reach over."""
    cut = partial(_cut, tokenizer)
    added = added_tokens(tokenizer, len(tokenizer))
    ids, offsets = cut(text)

    def stands(index: int) -> bool:
        """Whether an added token is there: a text is tokenised apart on both sides of it."""
        # The unknown token may be one too, and stand for anything.
        return ids[index] in added and text[slice(*offsets[index])].strip() == added[ids[index]]

    begins = []
    index, at, here = 0, 0, cut  # a place before, from which the text can be tokenised anew, and with what
    for start, _ in spans:
        near = bisect_right(offsets, (start, 0)) - 1
        before = next((i for i in range(near, index - 1, -1) if stands(i) and offsets[i][1] <= start), None)
        if before is not None:
            index, at, here = before, offsets[before][0], cut
        prompt_ids, prompt_offsets = _moved(here(text[at:start]), at)
        begin = index + len(prompt_ids)
        if ids[index:begin] != prompt_ids:
            rest = range(bisect_right(offsets, (start, -1)), len(ids))
            after = next((i for i in rest if stands(i)), len(ids))
            stop = offsets[after][0] if after < len(ids) else len(text)
            here = _inner(tokenizer, len(tokenizer))
            answer_ids, answer_offsets = _moved(here(text[start:stop]), start)
            ids = [*ids[:index], *prompt_ids, *answer_ids, *ids[after:]]
            offsets = [*offsets[:index], *prompt_offsets, *answer_offsets, *offsets[after:]]
            index, at = begin, start
        begins.append(begin)
    mask = np.zeros(len(ids), dtype=bool)
    # White space that was trimmed away has nothing left: it lies before the place where it is said to be.
    first = np.array([start - (start == stop and text[start - 1 : start].isspace()) for start, stop in offsets])
    for begin, (_, end) in zip(begins, spans, strict=True):
        mask[begin:] |= first[begin:] < end
    return ids, mask


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[Span]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _moved(tokens: tuple[list[int], list[Span]], by: int) -> tuple[list[int], list[Span]]:
    ids, offsets = tokens
    return ids, [(start + by, stop + by) for start, stop in offsets]


@lru_cache(maxsize=4)
def _inner(tokenizer: PreTrainedTokenizerBase, size: int) -> Cut:
    """How the tokenizer works in the middle of a text: without the space that some put in front of every text."""

    def inner(part: Any) -> Any:
        if isinstance(part, list):
            return [inner(item) for item in part]
        if not isinstance(part, dict):
            return part
        changed = {name: inner(value) for name, value in part.items()}
        if part.get("type") == "Metaspace":
            return {**changed, "prepend_scheme": "never"}
        if part.get("type") == "ByteLevel":
            return {**changed, "add_prefix_space": False}
        if part.get("type") == "Prepend":
            return {"type": "Sequence", "normalizers": []}
        return changed

    made = json.loads(tokenizer.backend_tokenizer.to_str())
    made |= {"normalizer": inner(made["normalizer"]), "pre_tokenizer": inner(made["pre_tokenizer"]),
             "post_processor": inner(made["post_processor"]), "truncation": None, "padding": None}  # fmt: skip
    backend = Tokenizer.from_str(json.dumps(made))

    def cut(text: str) -> tuple[list[int], list[Span]]:
        encoding = backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    return cut
