"""Chooses the columns of the data and checks the values in them.

There are six kinds of rows: `text` (one string), `prompt` (prompt, completion), `messages` (a chat), `pairs` (source,
target), `labelled` (text, label) and `tagged` (words, tags). Flags name the columns; otherwise they are detected by
their names and reported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtrain.config.data import Split
from lmtrain.errors import InputError, UsageError, suggestion, visible

Record = Mapping[str, Any]
"""Column -> value."""

OPTIONS = {
    "messages": ("messages_column",),
    "prompt": ("prompt_column", "completion_column"),
    "text": ("text_column",),
    "pairs": ("source_column", "target_column"),
    "labelled": ("text_column", "label_column"),
    "tagged": ("tokens_column", "tags_column"),
}
"""Kind of rows -> options that name its columns."""

FAMILIAR = (
    ("messages", ("messages",)),
    ("prompt", ("prompt", "completion")),
    ("prompt", ("prompt", "response")),
    ("text", ("text",)),
    ("text", ("content",)),
    ("text", ("document",)),
    ("text", ("sentence",)),
    ("prompt", ("instruction", "response")),
    ("prompt", ("question", "answer")),
    ("pairs", ("source", "target")),
    ("pairs", ("document", "summary")),
    ("pairs", ("article", "highlights")),
    ("pairs", ("article", "summary")),
    ("pairs", ("dialogue", "summary")),
    ("pairs", ("text", "summary")),
    ("pairs", ("input", "target")),
    ("pairs", ("input", "output")),
    ("pairs", ("question", "answer")),
    ("labelled", ("text", "label")),
    ("labelled", ("sentence", "label")),
    ("tagged", ("tokens", "tags")),
    ("tagged", ("tokens", "ner_tags")),
)
"""(kind, column names) to detect, the least ambiguous names first."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRow(Exception):
    """A row with an unusable value. The message says why; the reader adds the file and line."""


@dataclass(frozen=True)
class Selection:
    """A kind of rows and the paths of its columns: names, dotted paths or templates."""

    kind: str
    paths: tuple[str, ...]
    detected: bool
    """Whether the columns were detected by name, rather than given by flags."""

    def __str__(self) -> str:
        return " and ".join(f"'{path}'" for path in self.paths)

    def value(self, record: Record) -> Any:
        """The value of a record, or None where it is empty. Raises BadRow.

        text: a string. prompt and labelled: two strings. pairs: the source and one or several targets. messages: a list
        of messages. tagged: two lists of strings.
        """
        if self.kind == "messages":
            return _messages(lookup(record, self.paths[0]), self.paths[0])
        if self.kind == "pairs":
            return _pair(record, *self.paths)
        if self.kind == "labelled":
            return _labelled(record, *self.paths)
        if self.kind == "tagged":
            return _tagged(record, *self.paths)
        strings = [_text(record, path) for path in self.paths]
        if any(not string.strip() for string in strings):
            return None
        return strings[0] if self.kind == "text" else tuple(strings)


def _pair(record: Record, source_path: str, target_path: str) -> tuple[str, ...] | None:
    source = _text(record, source_path)
    target = _text(record, target_path) if template_fields(record, target_path) else lookup(record, target_path)
    references = target if isinstance(target, list | tuple) else [target]
    targets = [text for text in (_string(value, target_path) for value in references) if text.strip()]
    return (source, *targets) if source.strip() and targets else None


def _labelled(record: Record, text_path: str, label_path: str) -> tuple[str, str] | None:
    text, label = _text(record, text_path), _label(lookup(record, label_path), label_path)
    return (text, label) if text.strip() else None


def _tagged(record: Record, words_path: str, tags_path: str) -> tuple[list[str], list[str]] | None:
    words, tags = (lookup(record, path) for path in (words_path, tags_path))
    words = [
        _string(word, words_path)
        for word in (words if isinstance(words, list) else _string(words, words_path).split())
    ]
    tags = [_label(tag, tags_path) for tag in (tags if isinstance(tags, list) else _string(tags, tags_path).split())]
    if len(words) != len(tags):
        raise BadRow(f"columns '{words_path}' and '{tags_path}': {len(words)} words, but {len(tags)} tags")
    return (words, tags) if words else None


def _label(value: Any, path: str) -> str:
    """A label as text; it may be a name, a class number or a boolean."""
    label = str(value) if isinstance(value, bool | int) else _string(value, path)
    if not label.strip():
        raise BadRow(f"column '{path}': is empty")
    return label


ABSENT = object()
FIELD = re.compile(r"\{([^{}]+)\}")


def lookup(record: Record, path: str) -> Any:
    """The value at a dotted path, or ABSENT. A column whose own name contains the dots takes precedence."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def template_fields(record: Record, path: str) -> list[str]:
    """The columns in a template such as `question: {question} context: {context}`; empty where `path` is a column."""
    return [] if path in record else FIELD.findall(path)


def _text(record: Record, path: str) -> str:
    """The text of a column or a template. A template whose columns are all empty gives the empty string."""
    names = template_fields(record, path)
    if not names:
        return _string(lookup(record, path), path)
    texts = {name: _string(lookup(record, name), name) for name in names}
    return FIELD.sub(lambda field: texts[field[1]], path) if any(text.strip() for text in texts.values()) else ""


def _string(value: Any, path: str) -> str:
    if value is ABSENT:
        raise BadRow(f"column '{path}': is missing")
    if value is None:
        raise BadRow(f"column '{path}': is null")
    if not isinstance(value, str):
        raise BadRow(f"column '{path}': is {type(value).__name__} {visible(repr(value), 30)}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"column '{path}': contains a lone surrogate, which is not a valid character") from None
    return value


def _messages(value: Any, path: str) -> list[dict[str, str]] | None:
    if value is ABSENT or value is None:
        raise BadRow(f"column '{path}': is {'missing' if value is ABSENT else 'null'}")
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise BadRow(f"column '{path}': is not a list of {{role, content}} messages")
    if not value:
        return None
    messages = []
    for number, message in enumerate(value, 1):
        role = message.get("role")
        if role not in ROLES:
            raise BadRow(
                f"column '{path}', message {number}: unknown role {visible(repr(role))}; known are {', '.join(ROLES)}"
            )
        try:
            json.dumps(message, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            raise BadRow(f"column '{path}', message {number}: contains a value that JSON cannot represent") from None
        messages.append({**message, "content": _string(message.get("content"), f"{path}[{number}].content")})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise BadRow(f"column '{path}': no assistant turn, so there is nothing to train on")
    return messages


def choose(first: Record, data: Split, where: str) -> Selection:
    """Choose the columns to read by the flags and the columns of the first records, `first`.

    Raises UsageError for flags that do not fit together, InputError for columns that are missing or not detected.
    """
    options = data.model_dump()
    named = [option for kind in data.kinds for option in OPTIONS[kind] if options.get(option)]
    if len({kind for kind in data.kinds for option in OPTIONS[kind] if option in named}) > 1:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in named)
        raise UsageError(f"{flags} select different kinds of rows; give those of one kind")
    for kind in data.kinds:
        given = [path for option in OPTIONS[kind] if (path := options.get(option))]
        if len(given) == len(OPTIONS[kind]):
            for path in given:
                _require(first, path, where)
            return Selection(kind, tuple(given), detected=False)
        if given:
            flags = " and ".join(f"--{option.replace('_', '-')}" for option in OPTIONS[kind])
            raise UsageError(f"{flags} belong together; give both")
    if "pairs" in data.kinds and (selection := _languages(first, options, where)):
        return selection
    for kind, names in FAMILIAR:
        if kind in data.kinds and all(name in first for name in names):
            return Selection(kind, names, detected=True)
    flags = " or ".join(" ".join(f"--{o.replace('_', '-')}" for o in OPTIONS[kind]) for kind in reversed(data.kinds))
    raise InputError(f"{where}: which column to use? It has {_names(first)}; name it with {flags}")


def _languages(first: Record, options: dict[str, Any], where: str) -> Selection | None:
    """Detect columns named by language codes: {"de": …, "en": …} or {"translation": {"de": …, "en": …}}."""
    source, target = options.get("source_lang"), options.get("target_lang")
    nested = isinstance(first.get("translation"), Mapping)
    if source and target:
        for prefix in ("", "translation."):
            if all(lookup(first, prefix + language) is not ABSENT for language in (source, target)):
                return Selection("pairs", (prefix + source, prefix + target), detected=True)
    if nested and "source_column" in options:
        languages = ", ".join(first["translation"])
        raise InputError(
            f"{where}: has translations in {languages}; give the direction with --source-lang and --target-lang"
        )
    return None


def _require(first: Record, path: str, where: str) -> None:
    if names := template_fields(first, path):
        for name in names:
            _require(first, name, where)
        return
    if lookup(first, path) is ABSENT and path.split(".")[0] not in first:
        raise InputError(f"{where}: no column '{visible(path)}'; it has {_names(first)}{suggestion(path, first)}")


def _names(record: Record) -> str:
    plain = [visible(str(name), 40) for name in record]
    names = [name if name == name.strip() else f"'{name}'" for name in plain]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
