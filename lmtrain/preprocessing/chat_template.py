"""Finds the assistant turns in the rendered text of a chat, under any chat template."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError, TakesTooLong
from lmtrain.preprocessing.chat_alignment import Span, align
from lmtrain.runtime import signals

Messages = list[dict[str, str]]

Render = Callable[..., str]

MARKED = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)

MARKS_HELP = "use one with {% generation %} marks"


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str
) -> tuple[str, list[Span], bool]:
    """(the rendered chat, the span of each assistant turn, whether the template has an end marker).

    A span reaches from the end of the turn's header to the end of its end marker. Raises InputError naming `where`.
    """
    template = tokenizer.get_chat_template()
    added = added_tokens(tokenizer, len(tokenizer)).values()
    render = partial(render_chat, tokenizer, template, where)
    text = render(messages)
    if not _is_marked(template):
        return text, *_spans_by_placeholders(render, messages, text, where, added)
    spans = _spans_by_marks(render, template, messages, text, where)
    ending = turn_ending(tokenizer, template)
    if ending is None:
        return text, spans, True
    adjusted = [(start, ending.adjust(text, end, added)) for start, end in spans]
    return text, adjusted, bool(ending.marker or not adjusted)


PATIENCE = 2
"""Time limit for rendering a chat, in seconds."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase, template: str, where: str, messages: Messages, **options: Any
) -> str:
    """The chat as text. Raises InputError naming `where`; TakesTooLong if rendering exceeds `PATIENCE`."""
    try:
        with signals.time_limit(PATIENCE):
            text = tokenizer.apply_chat_template(messages, tokenize=False, **{"chat_template": template, **options})
            return cast(str, text)
    except TakesTooLong:
        raise TakesTooLong(
            f"{where or 'a tiny chat'}: the tokenizer's chat template did not finish within {PATIENCE} seconds"
        ) from None
    except Exception as error:  # a template is a program and may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the chat template raises an error: {reason}") from None


def _placeholders(text: str) -> Iterator[str]:
    """Characters of a private use area that do not occur in the text."""
    present = set(text)
    return (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in present)


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
    begin, end = islice(_placeholders(text), 2)
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
        raise InputError(
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
    placeholder = next(_placeholders(template))
    tiny = [{"role": "user", "content": "a"}, {"role": "assistant", "content": placeholder}]
    render = partial(render_chat, tokenizer, template, "")
    for messages in (tiny, [{"role": "system", "content": "a"}, *tiny]):
        try:
            text = render(messages)
            spans = _spans_by_marks(render, template, messages, text, "") if _is_marked(template) else []
        except InputError:
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
    render: Render, messages: Messages, text: str, where: str, added: Iterable[str]
) -> tuple[list[Span], bool]:
    """(spans, whether there is an end marker) under a template without generation marks.

    A rendering with a placeholder for the content of each assistant message (the skeleton) shows where these contents
    go. What stands between them is the same in `text`, whatever the template does to the contents.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return [], True
    placeholder_of = dict(zip(turns, _placeholders(text), strict=False))
    replaced = [{**m, "content": placeholder_of[i]} if i in placeholder_of else m for i, m in enumerate(messages)]
    skeleton = render(replaced)
    positions = [skeleton.find(placeholder) for placeholder in placeholder_of.values()]
    if any(skeleton.count(mark) != 1 for mark in placeholder_of.values()) or positions != sorted(positions):
        raise InputError(
            f"{where}: the chat template does not render every assistant message once and in order, so the "
            f"assistant's part is unknown; {MARKS_HELP}"
        )

    def ending_after(index: int) -> str:
        """What follows the content of this message if no other message follows."""
        shortened = skeleton if index == len(messages) - 1 else render(replaced[: index + 1])
        return shortened.partition(placeholder_of[index])[2].rstrip()

    last_ending = ending_after(turns[-1])
    starts: list[int] = []
    ends: list[int] = []
    for index, position in zip(turns, positions, strict=True):
        start = _header_end(render, replaced[:index], skeleton, ends[-1] if ends else 0, position)
        length = _shared(last_ending, skeleton[position + 1 :], added)
        if length is None or (last_ending and not length):
            length = _shared(ending_after(index), skeleton[position + 1 :], added)
        if start is None or length is None:
            raise InputError(
                f"{where}: the chat template renders a turn differently once others follow, so where the assistant's "
                f"part {'begins' if start is None else 'ends'} is unknown; {MARKS_HELP}"
            )
        starts.append(start)
        ends.append(position + 1 + length)
    contents = [messages[index]["content"] for index in turns]
    spans = align(contents, skeleton, text, list(zip(starts, positions, ends, strict=True)))
    if spans is None:
        raise InputError(
            f"{where}: the chat template changes an assistant message so that it cannot be told from the text around "
            f"it; {MARKS_HELP}"
        )
    return spans, bool(last_ending)


def _header_end(render: Render, before: Messages, skeleton: str, least: int, position: int) -> int | None:
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
    found = skeleton.rfind(header, least, position) if header.strip() else -1
    return None if found < 0 else found + len(header)


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
