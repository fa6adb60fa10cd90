"""The values of rows with labels: the text and its label, labels or number; words and tags; a question and its answers."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmtrain.config.heads import PROBLEM_TYPES
from lmtrain.config.labelled_data import PAIR_SEPARATOR
from lmtrain.data.columns import ABSENT, BadRow, Record, as_text, is_number, lookup, number_or_text, text_at
from lmtrain.data.labels import Label
from lmtrain.errors import visible

Counts = Counter[str] | None
"""What is converted, counted (remarks.py)."""

LARGEST = 3.4e38
"""The largest number that fits into float32."""

MOVED = "{count} answers do not begin where 'answer_start' says; the occurrence that is nearest is used"


def labelled_value(kind: str, record: Record, paths: Sequence[str], counts: Counts) -> tuple[Any, Any] | None:
    """(the content, its label) of a record, or None where the text is empty. Raises BadRow.

    labelled: a text and its label. several: a text and a list of labels, which may be empty. number: a text and a number.
    tagged: two lists of strings. question: the question and its context, joined by PAIR_SEPARATOR, and the answers, each with
    where it begins in the context; none where the question has no answer.
    """
    if kind == "tagged":
        return _tagged(record, *paths)
    if kind == "question":
        return _question(record, counts, *paths)
    text, value = text_at(record, paths[0]), lookup(record, paths[1])
    label: Label
    if kind == "several":
        label = _labels(value, paths[1], counts)
    elif kind == "number":
        label = _number(value, paths[1])
    else:
        count_numbers([value], paths[1], counts)
        label = _label(value, paths[1])
    return (text, label) if text.strip() else None


def kind_of_labels(first: Record, path: str, problem_type: str | None) -> str:
    """The kind of labelled rows: of the problem that is given, else several where the column holds lists, else one."""
    if problem_type:
        return PROBLEM_TYPES.get(problem_type, "labelled")
    return "several" if isinstance(lookup(first, path), list) else "labelled"


def count_numbers(values: Iterable[Any], path: str, counts: Counts) -> None:
    """Count the numbers that are used as text."""
    if counts is not None and (numbers := sum(map(is_number, values))):
        counts[f"{{count}} numbers in '{path}' are used as text"] += numbers


def _label(value: Any, path: str) -> str:
    """A label as text; it may be a name, a number or a boolean."""
    label = number_or_text(value, path)
    if not label.strip():
        raise BadRow(f"column '{path}': is empty")
    return label


def _labels(value: Any, path: str, counts: Counts) -> list[str]:
    """The labels of a list; a single label may stand without one."""
    found = value if isinstance(value, list | tuple) else [value]
    count_numbers(found, path, counts)
    labels = [_label(label, path) for label in found]
    if twice := next((label for label, times in Counter(labels).items() if times > 1), None):
        raise BadRow(
            f"column '{path}': has the label '{visible(twice, 30)}' twice; if these are zeros and ones for each label, list the "
            "names of those that apply"
        )
    return labels


def _number(value: Any, path: str) -> float:
    text = number_or_text(value, path)
    try:
        number = math.nan if isinstance(value, bool) else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise BadRow(f"column '{path}': is {visible(text, 30)}, not a number")
    return number


def _tagged(record: Record, words_path: str, tags_path: str) -> tuple[list[str], list[str]] | None:
    words, tags = (lookup(record, path) for path in (words_path, tags_path))
    words = [
        as_text(word, words_path)
        for word in (words if isinstance(words, list) else as_text(words, words_path).split())
    ]
    tags = [_label(tag, tags_path) for tag in (tags if isinstance(tags, list) else as_text(tags, tags_path).split())]
    if len(words) != len(tags):
        raise BadRow(f"columns '{words_path}' and '{tags_path}': {len(words)} words, but {len(tags)} tags")
    return (words, tags) if words else None


def _question(
    record: Record, counts: Counts, question_path: str, context_path: str, answers_path: str
) -> tuple[str, list[list[Any]]] | None:
    question, context = text_at(record, question_path), text_at(record, context_path)
    value = lookup(record, answers_path)
    if value is ABSENT:
        raise BadRow(f"column '{answers_path}': is missing")
    if not question.strip() or not context.strip():
        return None
    answers: list[list[Any]] = []
    if str(record.get("is_impossible")).lower() in (
        "true",
        "1",
    ):  # SQuAD 2.0 and KLUE-MRC: what is listed would only be plausible
        return f"{question}{PAIR_SEPARATOR}{context}", answers
    for text, start in _answers(value, answers_path):
        at = _nearest(context, text, start)
        if at < 0:
            raise BadRow(f"column '{answers_path}': '{visible(text, 60)}' does not occur in '{context_path}'")
        if counts is not None and start is not None and at != start:
            counts[MOVED] += 1
        answers.append([text, at])
    return f"{question}{PAIR_SEPARATOR}{context}", answers


def _answers(value: Any, path: str) -> list[tuple[str, int | None]]:
    """(text, start if it is given) of each answer that is not blank, in the layouts of SQuAD and of the Hub."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        starts = value.get("answer_start") or [None] * len(value["text"])
        if len(starts) != len(value["text"]):
            raise BadRow(f"column '{path}': {len(value['text'])} texts, but {len(starts)} in 'answer_start'")
        found = list(zip(value["text"], starts, strict=True))
    else:
        parts = [] if value is None else value if isinstance(value, list) else [value]
        found = [(p.get("text"), p.get("answer_start")) if isinstance(p, Mapping) else (p, None) for p in parts]
    for _, start in found:
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise BadRow(f"column '{path}': 'answer_start' is {visible(repr(start), 30)}, not a whole number")
    texts = [(as_text(text, path), start) for text, start in found]
    return [
        (text.strip(), None if start is None else start + len(text) - len(text.lstrip()))
        for text, start in texts
        if text.strip()
    ]


def _nearest(context: str, text: str, start: int | None) -> int:
    """Where the occurrence of an answer that is nearest to `start` begins; -1 if there is none."""
    if start is None:
        return context.find(text)
    if start >= 0 and context.startswith(text, start):
        return start
    places = [context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, max(start, 0))]
    return min((at for at in places if at >= 0), key=lambda at: abs(at - start), default=-1)
