"""Chats -> token ids and a mask of the assistant's tokens.

The trained part of an assistant turn is what the model has to generate: everything after the turn's header (the
generation prompt) up to the end marker, inclusive. A line break after the end marker is not trained.

The text is tokenized as a whole, but no token crosses the boundary between a header and the assistant's text: there
the text is split, so the ids before an assistant turn are exactly those of its prompt. A token that crosses the end of
an assistant turn is trained.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError
from lmtrain.preprocessing.chat_alignment import Span
from lmtrain.preprocessing.chat_rendering import Messages, RefusedChat, as_taken, render_chat, template_of
from lmtrain.preprocessing.chat_template import added_tokens, assistant_spans, turn_ending

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
    """Give a tokenizer without a chat template the default one. A note on the template, if it is not the only one."""
    if tokenizer.chat_template:
        names = [*tokenizer.chat_template] if isinstance(tokenizer.chat_template, dict) else []
        used = "default, and tool_use for chats with tools" if "tool_use" in names else "default"
        return f"the tokenizer has the chat templates {', '.join(names)}: using {used}" if names[1:] else None
    if tokenizer.eos_token is None:
        raise InputError("chat data needs a tokenizer with an end token or with a chat template of its own")
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return "the tokenizer has no chat template: using <|role|> lines, saved with the tokenizer"


def notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Notes on how assistant turns end under the tokenizer's chat template. Raises InputError if they can't end."""
    ending = turn_ending(tokenizer, template_of(tokenizer))
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
    ending = turn_ending(tokenizer, template_of(tokenizer))
    marker = ending.marker or ending.unmarked if ending else ""
    known = {text: index for index, text in added_tokens(tokenizer, len(tokenizer)).items()}
    return [index for index in dict.fromkeys((tokenizer.eos_token_id, known.get(marker))) if index is not None]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as its template renders it."""

    messages: Messages
    """As the template takes them."""
    text: str
    spans: list[Span]
    """The span of each turn of the assistant in the text."""
    has_marker: bool
    """Whether the template ends a turn."""
    where: str


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, tools: list[Any] | None = None
) -> RenderedChat:
    """The chat under its template. Raises InputError naming `where`: RefusedChat if another chat may do."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{where}: a chat needs a tokenizer that knows where in the text its tokens are; this one has no fast "
            "version"
        )
    messages = as_taken(tokenizer, template_of(tokenizer, tools), messages)
    return RenderedChat(messages, *assistant_spans(tokenizer, messages, where, tools), where)


def tokenized(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, untrained: Sequence[int] = ()
) -> tuple[list[int], np.ndarray]:
    """(ids, [ids] bool mask of the trained tokens); the messages `untrained` are not trained. Raises InputError.

    Without an end marker in the template, the chat is cut after its last assistant turn and the end token is appended.
    """
    turns = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if untrained and len(turns) != len(chat.spans):
        raise RefusedChat(
            f"{chat.where}: the generation marks of the chat template do not enclose every assistant message once, so "
            "which one is not to be trained is unknown"
        )
    skipped = {number for number, index in enumerate(turns) if index in untrained}
    text = chat.text if chat.has_marker else chat.text[: chat.spans[-1][1]]
    ids, mask = _tokenized(tokenizer, text, chat.spans, skipped)
    if not chat.has_marker:
        _end_token(tokenizer)
        ids, mask = [*ids, tokenizer.eos_token_id], np.append(mask, len(chat.spans) - 1 not in skipped)
    return ids, mask


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, tools: list[Any] | None = None
) -> tuple[list[int], np.ndarray]:
    """(ids, [ids] bool mask of the trained tokens). Raises InputError naming `where`."""
    return tokenized(tokenizer, rendered(tokenizer, messages, where, tools))


def last_answer(trained: np.ndarray) -> tuple[int, int]:
    """(start, end) of the last tokens in a row that are trained, of a mask with some."""
    end = int(np.flatnonzero(trained)[-1]) + 1
    before = np.flatnonzero(~trained[:end])
    return int(before[-1]) + 1 if len(before) else 0, end


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, tools: list[Any] | None = None
) -> list[int]:
    """The ids up to the next assistant turn, with earlier turns tokenized as in training. Raises InputError."""
    template = template_of(tokenizer, tools)
    messages = as_taken(tokenizer, template, messages)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    text = render_chat(tokenizer, template, where, messages, add_generation_prompt=True, **options)
    spans: list[Span] = []
    # If the assistant turns cannot be found, no training depended on them, and plain tokenization will do.
    if tokenizer.is_fast and any(message["role"] == "assistant" for message in messages):
        with suppress(InputError):
            trained, spans, _ = assistant_spans(tokenizer, messages, where, tools)
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


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span], skipped: Collection[int] = ()
) -> tuple[list[int], np.ndarray]:
    """(ids of the text, [ids] bool: part of a span), split at the start of a span where a token would cross it.

    The spans of the numbers `skipped` have no part in the mask.
    """
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
    kept = [
        (first, end) for n, (first, (_, end)) in enumerate(zip(first_tokens, spans, strict=True)) if n not in skipped
    ]
    return ids, _mask(text, offsets, kept)


def _mask(text: str, offsets: list[Span], turns: list[tuple[int, int]]) -> np.ndarray:
    """[tokens] bool: of each turn (first token, end), the tokens from the first to the last that begins before the end."""
    mask = np.zeros(len(offsets), dtype=bool)
    # A token of trimmed white space has an empty span after the white space; it belongs to the text before.
    starts = np.array([start - (start == stop and text[start - 1 : start].isspace()) for start, stop in offsets])
    for first, end in turns:
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
