"""Finds the assistant turns in the rendered text of a chat, under any chat template."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmtrain.preprocessing.chat_alignment import Span, align
from lmtrain.preprocessing.chat_rendering import (
    Messages,
    RefusedChat,
    Render,
    call_form,
    placeholders,
    render_chat,
    template_of,
)

MARKED = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
OPENING = re.compile(r"(?:\s*[<\[][^<>\[\]]+[>\]])+\s*")

MARKS_HELP = "use one with {% generation %} marks"


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, tools: list[Any] | None = None
) -> tuple[str, list[Span], bool]:
    """(the rendered chat, the span of each assistant turn, whether the template has an end marker).

    A span reaches from the end of the turn's header to the end of its end marker. Raises RefusedChat naming `where`.
    """
    template = template_of(tokenizer, tools)
    added = added_tokens(tokenizer, len(tokenizer)).values()
    options: dict[str, Any] = {"tools": tools} if tools else {}
    render: Render = partial(render_chat, tokenizer, template, where, **options)
    text = render(messages)
    if not _is_marked(template):
        calls = any("tool_calls" in message for message in messages) and call_form(tokenizer, template) is not None
        spans, last_ending = _spans_by_placeholders(render, messages, text, where, added, calls)
        if last_ending is None:
            ending = turn_ending(tokenizer, template)
            return text, spans, ending is None or bool(ending.marker)
        return text, spans, bool(last_ending)
    spans = _spans_by_marks(render, template, messages, text, where)
    ending = turn_ending(tokenizer, template)
    if ending is None:
        return text, spans, True
    adjusted = [(start, ending.adjust(text, end, added)) for start, end in spans]
    return text, adjusted, bool(ending.marker or not adjusted)


@lru_cache
def _is_marked(template: str) -> bool:
    return MARKED.search(COMMENT.sub("", template)) is not None


@lru_cache
def _with_placeholders(template: str, begin: str, end: str) -> str:
    """The template, writing `begin` and `end` around what its generation marks enclose.

    The added tags inherit the white space control of the mark, on the side that faces away from it.
    """

    def replaced(mark: re.Match[str]) -> str:
        left, closes, right = mark.groups(default="")
        if closes:
            return f"{{%{left} set lmtrain = 0 %}}{{{{ '{end}' }}}}{{% endgeneration {right}%}}"
        return f"{{%{left} generation %}}{{{{ '{begin}' }}}}{{% set lmtrain = 0 {right}%}}"

    return MARKED.sub(replaced, template)


def _spans_by_marks(render: Render, template: str, messages: Messages, text: str, where: str) -> list[Span]:
    """What the generation marks enclose, also where transformers' own offsets are wrong: in macros."""
    begin, end = islice(placeholders(text), 2)
    spans, position, start = [], 0, 0
    marked = render(messages, chat_template=_with_placeholders(template, begin, end))
    for piece in re.split(f"([{begin}{end}])", marked):
        if piece == begin:
            start = position
        elif piece == end:
            spans.append((start, position))
        else:
            position += len(piece)
    if marked.replace(begin, "").replace(end, "") != text:
        raise RefusedChat(
            f"{where}: the chat template processes the text between its generation marks, so the assistant's part is "
            "unknown"
        )
    return spans


@dataclass(frozen=True)
class TurnEnding:
    """How a template ends an assistant turn."""

    marker: str
    """The end marker inside the generation marks, or of a template without marks; may be empty."""
    unmarked: str = ""
    """The end marker, if it follows the generation marks."""
    trailing: str = ""
    """White space after the end marker that the generation marks include."""

    def adjust(self, text: str, end: int, added: Iterable[str]) -> int:
        """The end of an assistant turn whose generation marks end at `end`."""
        if self.unmarked:
            return end + (_shared(self.unmarked, text[end:], added) or 0)
        if self.trailing and text[:end].endswith(self.marker + self.trailing):
            return end - len(self.trailing)
        return end


@lru_cache(maxsize=4)
def turn_ending(tokenizer: PreTrainedTokenizerBase, template: str) -> TurnEnding | None:
    """Determined by rendering a tiny chat; None if the template renders none."""
    placeholder = next(placeholders(template))
    tiny = [{"role": "user", "content": "a"}, {"role": "assistant", "content": placeholder}]
    render = partial(render_chat, tokenizer, template, "")
    for messages in (tiny, [{"role": "system", "content": "a"}, *tiny]):
        try:
            text = render(messages)
            spans = _spans_by_marks(render, template, messages, text, "") if _is_marked(template) else []
        except RefusedChat:
            continue
        content_end = text.find(placeholder) + 1
        end = next((end for start, end in spans if start < content_end <= end), None)
        if not content_end:
            return None
        if end is None:
            return TurnEnding(text[content_end:].rstrip())
        inside = text[content_end:end]
        if marker := inside.rstrip():
            return TurnEnding(marker, trailing=inside[len(marker) :])
        return TurnEnding(text[content_end:].rstrip(), unmarked=text[end:].rstrip())
    return None


def _spans_by_placeholders(
    render: Render, messages: Messages, text: str, where: str, added: Iterable[str], calls: bool
) -> tuple[list[Span], str | None]:
    """(spans, what ends the last answer that calls no tool) under a template without generation marks.

    A rendering with a placeholder in each assistant message (the skeleton) shows where these messages go. What stands
    between them is the same in `text`, whatever the template does to them. The placeholder replaces the content, or,
    where the template renders `calls`, the name of the first function that a message calls.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return [], None
    outline = Outline(render, messages, dict(zip(turns, placeholders(text), strict=False)), calls)
    skeleton = outline.render(outline.messages)
    positions = [skeleton.find(placeholder) for placeholder in outline.placeholder_of.values()]
    if any(skeleton.count(mark) != 1 for mark in outline.placeholder_of.values()) or positions != sorted(positions):
        raise RefusedChat(
            f"{where}: the chat template does not render every assistant message once and in order, so the "
            f"assistant's part is unknown; {MARKS_HELP}"
        )
    speaking = [index for index in turns if index not in outline.calling]
    last_ending = outline.ending_after(speaking[-1], skeleton) if speaking else None
    starts: list[int] = []
    ends: list[int] = []
    for index, position in zip(turns, positions, strict=True):
        least = ends[-1] if ends else 0
        start = _header_end(outline.render, outline.messages[:index], skeleton, least, position, added)
        following = skeleton[position + 1 :]
        length = None if index in outline.calling else _shared(last_ending or "", following, added)
        if length is None or (last_ending and not length):
            length = _shared(outline.ending_after(index, skeleton), following, added)
        if length is None and start is not None:
            length = _marker_before_next(skeleton[least:start], following, added)
        if start is None or length is None or (index in outline.calling and not length):
            raise RefusedChat(
                f"{where}: the chat template renders a turn differently once others follow, so where the assistant's "
                f"part {'begins' if start is None else 'ends'} is unknown; {MARKS_HELP}"
            )
        starts.append(start)
        ends.append(position + 1 + length)
    spans = align(outline.replaced, skeleton, text, list(zip(starts, positions, ends, strict=True)))
    if spans is None:
        raise RefusedChat(
            f"{where}: the chat template changes an assistant message so that it cannot be told from the text around "
            f"it; {MARKS_HELP}"
        )
    return spans, last_ending


def _marker_before_next(header: str, following: str, added: Iterable[str]) -> int | None:
    """Length of the added token that ends a turn, if the token with which turns begin follows it directly.

    For a template that ends the last turn in another way than those that others follow.
    """
    first = max(added, key=header.rfind, default="")
    marker = following[: following.find(first)].rstrip() if first in header and first in following else ""
    return len(marker) if marker in set(added) else None


class Outline:
    """The messages of a chat with a placeholder in each of the assistant's."""

    def __init__(self, render: Render, messages: Messages, placeholder_of: dict[int, str], calls: bool):
        self._render, self.placeholder_of = render, placeholder_of
        self.calling = {index for index in placeholder_of if calls and messages[index].get("tool_calls")}
        self.replaced = [
            messages[index]["tool_calls"][0]["function"]["name"]
            if index in self.calling
            else messages[index]["content"]
            for index in placeholder_of
        ]
        """What each placeholder replaces."""
        self.messages = [
            self._with_placeholder(index, message) if index in placeholder_of else message
            for index, message in enumerate(messages)
        ]

    def _with_placeholder(self, index: int, message: dict[str, Any]) -> dict[str, Any]:
        placeholder = self.placeholder_of[index]
        if index not in self.calling:
            return {**message, "content": placeholder}
        first, *others = message["tool_calls"]
        return {**message, "tool_calls": [{**first, "function": {**first["function"], "name": placeholder}}, *others]}

    def render(self, messages: Messages, **options: Any) -> str:
        """The rendering. Where a template repeats the name of a function in the answer of the tool, it stays a name."""
        text = self._render(messages, **options)
        for index, name in zip(self.placeholder_of, self.replaced, strict=True):
            if index in self.calling:
                before, mark, after = text.partition(self.placeholder_of[index])
                text = before + mark + after.replace(self.placeholder_of[index], name)
        return text

    def ending_after(self, index: int, skeleton: str) -> str:
        """What follows the placeholder of this message if no other message follows; `skeleton` is the whole chat."""
        is_last = index == len(self.messages) - 1
        shortened = skeleton if is_last else self.render(self.messages[: index + 1])
        return shortened.partition(self.placeholder_of[index])[2].rstrip()


def _header_end(
    render: Render, before: Messages, skeleton: str, least: int, position: int, added: Iterable[str]
) -> int | None:
    """The end of the header of the turn whose placeholder is at `position`: where the generation prompt ends."""
    if not before:  # no generation prompt precedes the first message
        return position
    prompt = render(before, add_generation_prompt=True)
    if skeleton.startswith(prompt) and len(prompt) <= position:
        return len(prompt)
    if prompt.startswith(skeleton[:position]):  # it opens something that this turn lacks, such as <think>
        return position
    without_prompt = render(before)
    header = prompt[len(without_prompt) :] if prompt.startswith(without_prompt) else ""
    for length in [len(header), *_lengths_without_opening(header, added)] if header.strip() else []:
        found = skeleton.rfind(header[:length], least, position)
        if found >= 0:
            return found + length
    return None


def _lengths_without_opening(header: str, added: Iterable[str]) -> list[int]:
    """Lengths of the header without what it may open at its end, such as <think>: a turn that calls a tool lacks it."""
    ends = {match.end() for part in ("\n", *added) for match in re.finditer(re.escape(part), header)}
    return [end for end in sorted(ends, reverse=True) if header[:end].strip() and OPENING.fullmatch(header, end)]


def _shared(ending: str, following: str, added: Iterable[str]) -> int | None:
    """Length of the prefix of `ending` that `following` begins with.

    A partial ending is cut after its last added token; None if it has no added token.
    """
    pairs = zip(ending, following, strict=False)
    shared = ending[: next((i for i, (a, b) in enumerate(pairs) if a != b), len(following))]
    if len(shared) == len(ending) or not shared.strip():
        return len(shared) if shared == ending else 0
    whole = [position + len(token) for token in added if (position := shared.rfind(token)) >= 0]
    return max(whole, default=None)


@lru_cache(maxsize=4)
def added_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    """Id -> added token. Cached, since transformers sorts them at every access and there may be thousands."""
    return {index: token.strip() for token, index in tokenizer.added_tokens_encoder.items() if token.strip()}
