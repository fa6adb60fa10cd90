"""Finds the assistant turns of a rendered chat whose template may have changed their contents."""

Span = tuple[int, int]
"""(start, end) in characters."""


def align(contents: list[str], skeleton: str, text: str, turns: list[tuple[int, int, int]]) -> list[Span] | None:
    """The spans in `text` of the `turns` (start, placeholder, end) of `skeleton`; None if there is no unique way.

    `skeleton` is the chat with a placeholder of one character in place of each of the `contents`. First the contents
    are tried as they are and stripped. Otherwise they may be anything, but the text between them must fix the spans:
    searching from the front and from the back must give the same ones.
    """
    bounds = [0, *(bound for start, _, end in turns for bound in (start, end)), len(skeleton)]
    fixed = [skeleton[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds), 2)]
    for change in (str, str.strip):
        rendered = [
            skeleton[start:placeholder] + change(content) + skeleton[placeholder + 1 : end]
            for content, (start, placeholder, end) in zip(contents, turns, strict=True)
        ]
        if "".join(piece for pair in zip(fixed, [*rendered, ""], strict=True) for piece in pair) == text:
            return _spans_of(fixed, rendered)
    first, last = len(fixed[0]), len(text) - len(fixed[-1])
    if not (text.startswith(fixed[0]) and text.endswith(fixed[-1]) and first <= last):
        return None
    endings = [skeleton[placeholder + 1 : end].lstrip() for _, placeholder, end in turns]
    early, late = (search(text[first:last], endings, fixed[1:-1]) for search in (_earliest, _latest))
    return [(first + start, first + end) for start, end in early] if early and early == late else None


def _spans_of(fixed: list[str], turns: list[str]) -> list[Span]:
    """The spans of `turns` in the text made of `fixed` and `turns`, alternating."""
    spans, position = [], 0
    for between, turn in zip(fixed, turns, strict=False):
        position += len(between)
        spans.append((position, position + len(turn)))
        position += len(turn)
    return spans


def _earliest(text: str, endings: list[str], between: list[str]) -> list[Span] | None:
    """Spans as short as possible, searched from the front; `between` are the texts between the turns."""
    spans, start = [], 0
    for ending, follows in zip(endings[:-1], between, strict=True):
        found = text.find(ending + follows, start)
        if found < 0:
            return None
        spans.append((start, found + len(ending)))
        start = found + len(ending + follows)
    return [*spans, (start, len(text))] if text[start:].endswith(endings[-1]) else None


def _latest(text: str, endings: list[str], between: list[str]) -> list[Span] | None:
    """Spans as short as possible, searched from the back."""
    spans: list[Span] = []
    end, limit = len(text), len(text) - len(endings[-1])
    for ending, follows in reversed(list(zip(endings[:-1], between, strict=True))):
        found = text.rfind(ending + follows, 0, limit)
        if found < 0:
            return None
        spans.append((found + len(ending + follows), end))
        end, limit = found + len(ending), found
    return [*spans, (0, end)][::-1]
