"""Chats -> token ids and a mask of the assistant's tokens.

The trained part of an assistant turn is what the model has to generate: everything after the turn's header (the
generation prompt) up to the end marker, inclusive. A line break after the end marker is not trained.

The text is tokenized as a whole, but no token crosses the boundary between a header and the assistant's text: there
the text is split, so the ids before an assistant turn are exactly those of its prompt. A token that crosses the end of
an assistant turn is trained.
"""

import json
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError
from lmtrain.preprocessing.chat_alignment import Span
from lmtrain.preprocessing.chat_template import Messages, added_tokens, assistant_spans, render_chat, turn_ending

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
"""For base models without a template: each turn begins with its role, and assistant turns end with the end token."""


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a tokenizer without a chat template the default one and return a note about it, else None."""
    if tokenizer.chat_template:
        return None
    if tokenizer.eos_token is None:
        raise InputError("chat data needs a tokenizer with an end token or with a chat template of its own")
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return "the tokenizer has no chat template: using <|role|> lines, saved with the tokenizer"


def notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Notes on how assistant turns end under the tokenizer's chat template. Raises InputError if they can't end."""
    ending = turn_ending(tokenizer, tokenizer.get_chat_template())
    if ending is None:
        return []
    if not ending.marker:
        return [
            f"the chat template has no end marker: {_end_token(tokenizer)} is appended to the last assistant turn of "
            "every chat"
        ]
    if ending.unmarked:
        return [
            f"the chat template's generation marks leave out {ending.unmarked!r}, which ends an assistant turn: "
            "it is trained anyway"
        ]
    return []


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an assistant turn: the end token, and the template's end marker if it is an added token."""
    ending = turn_ending(tokenizer, tokenizer.get_chat_template())
    marker = ending.marker or ending.unmarked if ending else ""
    known = {text: index for index, text in added_tokens(tokenizer, len(tokenizer)).items()}
    return [index for index in dict.fromkeys((tokenizer.eos_token_id, known.get(marker))) if index is not None]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[list[int], np.ndarray]:
    """(ids, [ids] bool mask of the trained tokens). Raises InputError naming `where`.

    Without an end marker in the template, the chat is cut after its last assistant turn and the end token is appended.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{where}: a chat needs a tokenizer that knows where in the text its tokens are; this one has no fast "
            "version"
        )
    text, spans, has_marker = assistant_spans(tokenizer, messages, where)
    if not has_marker:
        text = text[: spans[-1][1]]
    ids, mask = _tokenized(tokenizer, text, spans)
    if not has_marker:
        _end_token(tokenizer)
        ids, mask = [*ids, tokenizer.eos_token_id], np.append(mask, True)
    return ids, mask


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> list[int]:
    """The ids up to the next assistant turn, with earlier turns tokenized as in training. Raises InputError."""
    text = render_chat(tokenizer, tokenizer.get_chat_template(), where, messages, add_generation_prompt=True)
    spans: list[Span] = []
    earlier = [message.get("content") for message in messages if message.get("role") == "assistant"]
    # If the assistant turns cannot be found, no training depended on them, and plain tokenization will do.
    if tokenizer.is_fast and earlier and all(isinstance(content, str) for content in earlier):
        with suppress(InputError):
            trained, spans, _ = assistant_spans(tokenizer, messages, where)
            spans = [span for span in spans if text.startswith(trained[: span[0]])]
    if spans:
        return _tokenized(tokenizer, text, spans)[0]
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the chat template has no end marker and the tokenizer has no end token, so a model could never stop; "
            "use a chat template with an end marker"
        )
    return tokenizer.eos_token


# --- text -> ids -----------------------------------------------------------------------------------------------------
Tokens = tuple[list[int], list[Span]]
"""(ids, the span of each in the text)."""

Tokenize = Callable[[str], Tokens]


def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span]) -> tuple[list[int], np.ndarray]:
    """(ids of the text, [ids] bool: part of a span), split at the start of a span where a token would cross it."""
    whole = partial(_tokenize, tokenizer)
    added = added_tokens(tokenizer, len(tokenizer))
    ids, offsets = whole(text)

    def is_added(index: int) -> bool:
        """Whether this is an added token: the text on either side of it is tokenized independently."""
        # The unknown token may be an added token as well, and stand for any text.
        return ids[index] in added and text[slice(*offsets[index])].strip() == added[ids[index]]

    first_tokens = []
    # The last place from which the text can be tokenized independently: token index, position, and how.
    index, position, tokenize = 0, 0, cast(Tokenize, whole)
    for start, _ in spans:
        near = bisect_right(offsets, (start, 0)) - 1
        before = next((i for i in range(near, index - 1, -1) if is_added(i) and offsets[i][1] <= start), None)
        if before is not None:
            index, position, tokenize = before, offsets[before][0], whole
        prompt_ids, prompt_offsets = _shifted(tokenize(text[position:start]), position)
        first = index + len(prompt_ids)
        if ids[index:first] != prompt_ids:
            rest = range(bisect_right(offsets, (start, -1)), len(ids))
            after = next((i for i in rest if is_added(i)), len(ids))
            stop = offsets[after][0] if after < len(ids) else len(text)
            tokenize = _tokenizer_inside_text(tokenizer, len(tokenizer))
            turn_ids, turn_offsets = _shifted(tokenize(text[start:stop]), start)
            ids = [*ids[:index], *prompt_ids, *turn_ids, *ids[after:]]
            offsets = [*offsets[:index], *prompt_offsets, *turn_offsets, *offsets[after:]]
            index, position = first, start
        first_tokens.append(first)
    return ids, _mask(text, offsets, spans, first_tokens)


def _mask(text: str, offsets: list[Span], spans: list[Span], first_tokens: list[int]) -> np.ndarray:
    """[tokens] bool: the tokens of each span, from its first token to the last one that begins before its end."""
    mask = np.zeros(len(offsets), dtype=bool)
    # A token of trimmed white space has an empty span after the white space; it belongs to the text before.
    starts = np.array([start - (start == stop and text[start - 1 : start].isspace()) for start, stop in offsets])
    for first, (_, end) in zip(first_tokens, spans, strict=True):
        mask[first:] |= starts[first:] < end
    return mask


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _shifted(tokens: Tokens, by: int) -> Tokens:
    ids, offsets = tokens
    return ids, [(start + by, stop + by) for start, stop in offsets]


@lru_cache(maxsize=4)
def _tokenizer_inside_text(tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenize:
    """The tokenizer for the middle of a text: without the space that some tokenizers prepend to every text.

    `size` is the size of the vocabulary, which makes the cache notice added tokens.
    """

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

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    changed = {name: inner(parts[name]) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    backend = Tokenizer.from_str(json.dumps({**parts, **changed, "truncation": None, "padding": None}))

    def tokenize(text: str) -> Tokens:
        encoding = backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    return tokenize
