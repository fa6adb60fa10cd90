"""Nested data -> flat rows: articles of paragraphs of questions (SQuAD), instructions of instances (Self-Instruct)."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from lmtrain.data.columns import BadRow, Entry, Record

NESTED = "{count} questions, nested as in SQuAD, are read as rows with the columns question, context and answers"
INSTANCES = (
    "{count} instances, nested as in Self-Instruct, are read as rows with the columns instruction, input and output"
)
UNANSWERED = "{count} of the questions have no answer and count as empty"


def flattened(read: Callable[[], Iterator[tuple[int, Entry]]], counts: Counter[str]) -> Iterator[tuple[int, Entry]]:
    """The rows of `read` with each nested question or instance as a row of its own; `counts` counts them (remarks.py).

    The row of a question has `question`, `context` and `answers`, {"text": […], "answer_start": […]}, as the flat data sets on the
    Hub do: the lists are empty where a question has no answer. It keeps what else question, paragraph and article have; the row of an instance keeps
    what else its instruction has.
    """
    counts.clear()
    last = 0
    for number, entry in read():
        if isinstance(entry, BadRow) or not is_nested(entry):
            last = max(number, last + 1) if counts else number
            yield last, entry
            continue
        for row in _instances(entry) or _questions(entry, {}):
            last = max(number, last + 1)
            _count(row, counts)
            yield last, row


def _count(row: Record, counts: Counter[str]) -> None:
    if "answers" not in row:
        counts[INSTANCES] += 1
        return
    counts[NESTED] += 1
    if not any(isinstance(text, str) and text.strip() for text in row["answers"]["text"]):
        counts[UNANSWERED] += 1


def is_nested(entry: Record) -> bool:
    """Whether a record is an article with paragraphs of questions, one such paragraph, or an instruction of instances."""
    return bool(_instances(entry)) or any(_are_objects(part.get("qas")) for part in (entry, *_paragraphs(entry)))


def _instances(entry: Record) -> list[Record]:
    """A record for each instance of an instruction: {"instruction": …, "instances": [{"input": …, "output": …}]}."""
    instances = entry.get("instances")
    if not isinstance(entry.get("instruction"), str) or not _are_objects(instances):
        return []
    outside = {name: value for name, value in entry.items() if name != "instances"}
    return [{**outside, **instance} for instance in instances] if "output" in instances[0] else []


def _paragraphs(entry: Record) -> list[Record]:
    paragraphs = entry.get("paragraphs")
    return paragraphs if _are_objects(paragraphs) else []


def _are_objects(value: Any) -> TypeGuard[list[Record]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _questions(entry: Record, outside: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of an article or a paragraph; `outside` is what the article says."""
    outside = {**outside, **{key: value for key, value in entry.items() if key not in ("paragraphs", "qas")}}
    for paragraph in _paragraphs(entry):
        yield from _questions(paragraph, outside)
    questions = entry.get("qas")
    for question in questions if _are_objects(questions) else ():
        answers = question.get("answers", question.get("answer"))
        others = {key: value for key, value in question.items() if key != "answer"}
        yield {**outside, **others, "answers": _columns(answers)}


def _columns(answers: Any) -> dict[str, list[Any]]:
    """[{"text": …, "answer_start": …}, …], or one such object, -> {"text": […], "answer_start": […]}."""
    found = answers if isinstance(answers, list) else [answers] if isinstance(answers, dict | str) else []
    objects = [answer if isinstance(answer, dict) else {"text": answer} for answer in found]
    names = dict.fromkeys(["text", *(name for answer in objects for name in answer)])
    return {name: [answer[name] for answer in objects if name in answer] for name in names}
