"""Where in the text of a chat its answers are, under any chat template."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError, TakesTooLong
from lmtrain.runtime import signals

Messages = list[dict[str, str]]

Span = tuple[int, int]
"""From which character to which."""

Render = Callable[..., str]

MARKED = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)

MARKS_HELP = "use one with {% generation %} marks"


def answers(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[str, list[Span], bool]:
    """(the chat as text, the part of it that each answer is, whether the template ends the last one)."""
    template = tokenizer.get_chat_template()
    added = added_tokens(tokenizer, len(tokenizer)).values()
    render = partial(render_chat, tokenizer, template, where)
    text = render(messages)
    if not _is_marked(template):
        return text, *_by_signs(render, messages, text, where, added)
    spans = _by_marks(render, template, messages, text, where)
    how = ending(tokenizer, template)
    if how is None:
        return text, spans, True
    fitted = [(start, how.fit(text, end, added)) for start, end in spans]
    return text, fitted, bool(how.marker or not fitted)


PATIENCE = 2
"""Seconds in which a template has to have written a chat."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase, template: str, where: str, messages: Messages, **options: Any
) -> str:
    try:
        with signals.within(PATIENCE):
            return tokenizer.apply_chat_template(messages, tokenize=False, **{"chat_template": template, **options})
    except TakesTooLong:
        raise TakesTooLong(f"{where or 'a tiny chat'}: the chat template of the tokenizer comes to no end") from None
    except Exception as error:  # a template is a program of somebody's; whatever it raises, the row is at fault
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the chat template refuses it: {reason}") from None


def _signs(text: str) -> Iterator[str]:
    """Characters (of a private use area) that are not in the text."""
    present = set(text)
    return (sign for sign in map(chr, range(0xF0000, 0xFFFFE)) if sign not in present)


@lru_cache
def _is_marked(template: str) -> bool:
    return MARKED.search(COMMENT.sub("", template)) is not None


@lru_cache
def _with_signs(template: str, begin: str, end: str) -> str:
    """The template writing a sign at either end of what it marks.

    The tags that are added take over the white space control of the mark, on the side that is turned away from it.
    """

    def signed(mark: re.Match[str]) -> str:
        left, closes, right = mark.groups(default="")
        if closes:
            return f"{{%{left} set lmtrain = 0 %}}{{{{ '{end}' }}}}{{% endgeneration {right}%}}"
        return f"{{%{left} generation %}}{{{{ '{begin}' }}}}{{% set lmtrain = 0 {right}%}}"

    return MARKED.sub(signed, template)


def _by_marks(render: Render, template: str, messages: Messages, text: str, where: str) -> list[Span]:
    """What stands between the template's marks, wherever in it they are: transformers' own offsets miss in macros."""
    begin, end = islice(_signs(text), 2)
    spans, at, start = [], 0, 0
    signed = render(messages, chat_template=_with_signs(template, begin, end))
    for piece in re.split(f"([{begin}{end}])", signed):
        if piece == begin:
            start = at
        elif piece == end:
            spans.append((start, at))
        else:
            at += len(piece)
    if signed.replace(begin, "").replace(end, "") != text:
        raise InputError(f"{where}: the chat template works on what is between its generation marks, so the "
                         "assistant's part is unknown")  # fmt: skip
    return spans


@dataclass(frozen=True)
class Ending:
    """What a template puts behind an answer."""

    marker: str
    unmarked: str = ""
    """What of it the marks leave out."""
    beyond: str = ""
    """White space behind it that the marks take in."""

    def fit(self, text: str, end: int, added: Iterable[str]) -> int:
        """Where an answer ends whose marks end at `end`."""
        if self.unmarked:
            return end + (_shared(self.unmarked, text[end:], added) or 0)
        if self.beyond and text[:end].endswith(self.marker + self.beyond):
            return end - len(self.beyond)
        return end


@lru_cache(maxsize=4)
def ending(tokenizer: PreTrainedTokenizerBase, template: str) -> Ending | None:
    """Found out by rendering a tiny chat; None where the template takes none."""
    sign = next(_signs(template))
    tiny = [{"role": "user", "content": "a"}, {"role": "assistant", "content": sign}]
    render = partial(render_chat, tokenizer, template, "")
    for messages in (tiny, [{"role": "system", "content": "a"}, *tiny]):
        try:
            text = render(messages)
            spans = _by_marks(render, template, messages, text, "") if _is_marked(template) else []
        except InputError:
            continue
        at = text.find(sign) + 1
        end = next((end for start, end in spans if start < at <= end), None)
        if not at:
            return None
        if end is None:
            return Ending(text[at:].rstrip())
        inside = text[at:end]
        if marker := inside.rstrip():
            return Ending(marker, beyond=inside[len(marker) :])
        return Ending(text[at:].rstrip(), unmarked=text[end:].rstrip())
    return None


def _by_signs(
    render: Render, messages: Messages, text: str, where: str, added: Iterable[str]
) -> tuple[list[Span], bool]:
    """For templates that do not mark the assistant's part: a sign in place of each answer shows where it is put.

    What stands between the answers is the same in the text itself, whatever the template makes of the answers.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return [], True
    sign_of = dict(zip(answers, _signs(text), strict=False))
    signed = [{**m, "content": sign_of[i]} if i in sign_of else m for i, m in enumerate(messages)]
    frame = render(signed)
    places = [frame.find(sign) for sign in sign_of.values()]
    if any(frame.count(sign) != 1 for sign in sign_of.values()) or places != sorted(places):
        raise InputError(f"{where}: the chat template does not render every answer once and in order, so the "
                         f"assistant's part is unknown; {MARKS_HELP}")  # fmt: skip
    last = answers[-1]
    tail = (frame if last == len(messages) - 1 else render(signed[: last + 1])).partition(sign_of[last])[2].rstrip()
    starts, ends = [], []
    for index, place in zip(answers, places, strict=True):
        start = _header_end(render, signed[:index], frame, ends[-1] if ends else 0, place)
        length = _shared(tail, frame[place + 1 :], added)
        if length is None or (tail and not length):
            own = render(signed[: index + 1]).partition(sign_of[index])[2].rstrip()
            length = _shared(own, frame[place + 1 :], added)
        if start is None or length is None:
            raise InputError(f"{where}: the chat template renders a turn otherwise once others follow, so where the "
                             f"assistant's part {'begins' if start is None else 'ends'} is unknown; {MARKS_HELP}")  # fmt: skip
        starts.append(start)
        ends.append(place + 1 + length)
    spans = _aligned(
        [messages[i]["content"] for i in answers], frame, text, list(zip(starts, places, ends, strict=True))
    )
    if spans is None:
        raise InputError(f"{where}: the chat template rewrites an answer so that it cannot be told from what is around "
                         f"it; {MARKS_HELP}")  # fmt: skip
    return spans, bool(tail)


def _header_end(render: Render, before: Messages, frame: str, least: int, place: int) -> int | None:
    """Where the header ends of the turn whose answer is at `place`: as far as the generation prompt goes."""
    if not before:  # nobody can ask for it
        return place
    asked = render(before, add_generation_prompt=True)
    if frame.startswith(asked) and len(asked) <= place:
        return len(asked)
    if asked.startswith(frame[:place]):  # it opens something that this answer does without, as a <think>
        return place
    told = render(before)
    header = asked[len(told) :] if asked.startswith(told) else ""
    at = frame.rfind(header, least, place) if header.strip() else -1
    return None if at < 0 else at + len(header)


def _shared(ending: str, following: str, added: Iterable[str]) -> int | None:
    """How much of an ending stands at the beginning of `following`; None where its parts cannot be told apart."""
    pairs = zip(ending, following, strict=False)
    shared = ending[: next((i for i, (a, b) in enumerate(pairs) if a != b), len(following))]
    if len(shared) == len(ending) or not shared.strip():
        return len(shared) if shared == ending else 0
    whole = [at + len(token) for token in added if (at := shared.rfind(token)) >= 0]
    return max(whole, default=None)


def _aligned(answers: list[str], frame: str, text: str, parts: list[tuple[int, int, int]]) -> list[Span] | None:
    """The parts (start, sign, end) of the frame as spans of the text; None where that can be done in no or two ways."""
    bounds = [0, *(bound for start, _, end in parts for bound in (start, end)), len(frame)]
    fixed = [frame[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds), 2)]
    closings = [frame[sign + 1 : end].lstrip() for _, sign, end in parts]
    for change in (str, str.strip):
        wrote = [frame[start:sign] + change(answer) + frame[sign + 1 : end]
                 for answer, (start, sign, end) in zip(answers, parts, strict=True)]  # fmt: skip
        if "".join(piece for pair in zip(fixed, [*wrote, ""], strict=True) for piece in pair) == text:
            spans, at = [], 0
            for between, answer in zip(fixed, wrote, strict=False):
                at += len(between)
                spans.append((at, at + len(answer)))
                at += len(answer)
            return spans
    first, last = len(fixed[0]), len(text) - len(fixed[-1])
    if not (text.startswith(fixed[0]) and text.endswith(fixed[-1]) and first <= last):
        return None
    early, late = (way(text[first:last], closings, fixed[1:-1]) for way in (_earliest, _latest))
    return [(first + start, first + end) for start, end in early] if early and early == late else None


def _earliest(text: str, closings: list[str], between: list[str]) -> list[Span] | None:
    """Each answer as short as it can be, from the first on."""
    spans, start = [], 0
    for closing, follows in zip(closings[:-1], between, strict=True):
        at = text.find(closing + follows, start)
        if at < 0:
            return None
        spans.append((start, at + len(closing)))
        start = at + len(closing + follows)
    return [*spans, (start, len(text))] if text[start:].endswith(closings[-1]) else None


def _latest(text: str, closings: list[str], between: list[str]) -> list[Span] | None:
    """Each answer as short as it can be, from the last on."""
    spans: list[Span] = []
    end, limit = len(text), len(text) - len(closings[-1])
    for closing, follows in reversed(list(zip(closings[:-1], between, strict=True))):
        at = text.rfind(closing + follows, 0, limit)
        if at < 0:
            return None
        spans.append((at + len(closing + follows), end))
        end, limit = at + len(closing), at
    return [*spans, (0, end)][::-1]


@lru_cache(maxsize=4)
def added_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    """The added tokens by id. They are sorted at every request, and there may be thousands."""
    return {index: token.strip() for token, index in tokenizer.added_tokens_encoder.items() if token.strip()}
