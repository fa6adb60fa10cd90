"""Which columns of the data are meant, and whether a row's values there can be used.

Six kinds of rows: `text` (one string), `prompt` (prompt, completion), `messages` (a chat), `pairs` (source,
target), `labelled` (text, label) and `tagged` (words, tags). Columns are named by flags or found by name; what is found is said aloud, never assumed in silence.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtrain.config.data import Split
from lmtrain.errors import InputError, UsageError, suggestion, visible

Record = Mapping[str, Any]

OPTIONS = {
    "messages": ("messages_column",),
    "prompt": ("prompt_column", "completion_column"),
    "text": ("text_column",),
    "pairs": ("source_column", "target_column"),
    "labelled": ("text_column", "label_column"),
    "tagged": ("tokens_column", "tags_column"),
}

# In order: what names its purpose comes before what might also be something else.
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

ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRow(Exception):
    """A row whose value cannot be used; the text says why, the reader adds where."""


@dataclass(frozen=True)
class Selection:
    """A kind of rows and the dotted paths of its columns."""

    kind: str
    paths: tuple[str, ...]
    found: bool
    """Found by name rather than given."""

    def __str__(self) -> str:
        return " and ".join(f"'{path}'" for path in self.paths)

    def value(self, record: Record) -> Any:
        """The usable value of a record; None where it is empty. Raises BadRow.

        A string for `text`, two for `prompt` and `labelled`; for `pairs` the source and one or several targets; a list
        of messages for `messages`; two lists of strings for `tagged`.
        """
        if self.kind == "messages":
            return _chat(reach(record, self.paths[0]), self.paths[0])
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
    target = _text(record, target_path) if fields(record, target_path) else reach(record, target_path)
    several = target if isinstance(target, list | tuple) else [target]
    targets = [text for text in (_string(value, target_path) for value in several) if text.strip()]
    return (source, *targets) if source.strip() and targets else None


def _labelled(record: Record, text_path: str, label_path: str) -> tuple[str, str] | None:
    text, label = _text(record, text_path), _label(reach(record, label_path), label_path)
    return (text, label) if text.strip() else None


def _tagged(record: Record, words_path: str, tags_path: str) -> tuple[list[str], list[str]] | None:
    words, tags = (reach(record, path) for path in (words_path, tags_path))
    words = [
        _string(word, words_path)
        for word in (words if isinstance(words, list) else _string(words, words_path).split())
    ]
    tags = [_label(tag, tags_path) for tag in (tags if isinstance(tags, list) else _string(tags, tags_path).split())]
    if len(words) != len(tags):
        raise BadRow(f"columns '{words_path}' and '{tags_path}': {len(words)} words, but {len(tags)} tags")
    return (words, tags) if words else None


def _label(value: Any, path: str) -> str:
    """A label as text: names, numbers of classes, true and false."""
    label = str(value) if isinstance(value, bool | int) else _string(value, path)
    if not label.strip():
        raise BadRow(f"column '{path}': is empty")
    return label


ABSENT = object()
FIELD = re.compile(r"\{([^{}]+)\}")


def reach(record: Record, path: str) -> Any:
    """The value at a dotted path; a column whose own name holds the dots comes first."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def fields(record: Record, path: str) -> list[str]:
    """The columns in a template such as `question: {question} context: {context}`; none where `path` is a column."""
    return [] if path in record else FIELD.findall(path)


def _text(record: Record, path: str) -> str:
    """The text of a column, or of a template; nothing where all its columns are empty."""
    names = fields(record, path)
    if not names:
        return _string(reach(record, path), path)
    texts = {name: _string(reach(record, name), name) for name in names}
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
            raise BadRow(f"column '{path}': holds a lone surrogate, which is no character") from None
    return value


def _chat(value: Any, path: str) -> list[dict[str, str]] | None:
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
            raise BadRow(f"column '{path}', message {number}: unknown role {visible(repr(role))}; "
                         f"there are {', '.join(ROLES)}")  # fmt: skip
        try:
            json.dumps(message, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            raise BadRow(f"column '{path}', message {number}: holds what is neither text, number nor list") from None
        messages.append({**message, "content": _string(message.get("content"), f"{path}[{number}].content")})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise BadRow(f"column '{path}': no assistant turn, so nothing would be trained")
    return messages


def choose(first: Record, data: Split, where: str) -> Selection:
    """The columns to read, decided on the first record of a file.

    Raises UsageError for half a pair of flags, InputError for a column that is not there or cannot be guessed.
    """
    options = data.model_dump()
    named = [option for kind in data.kinds for option in OPTIONS[kind] if options.get(option)]
    if len({kind for kind in data.kinds for option in OPTIONS[kind] if option in named}) > 1:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in named)
        raise UsageError(f"{flags} name two kinds of rows; give one kind")
    for kind in data.kinds:
        given = [options.get(option) for option in OPTIONS[kind]]
        if all(given):
            for path in given:
                _require(first, path, where)
            return Selection(kind, tuple(given), found=False)
        if any(given):
            flags = " and ".join(f"--{option.replace('_', '-')}" for option in OPTIONS[kind])
            raise UsageError(f"{flags} belong together; one is missing")
    if "pairs" in data.kinds and (selection := _languages(first, options, where)):
        return selection
    for kind, names in FAMILIAR:
        if kind in data.kinds and all(name in first for name in names):
            return Selection(kind, names, found=True)
    flags = " or ".join(" ".join(f"--{o.replace('_', '-')}" for o in OPTIONS[kind]) for kind in reversed(data.kinds))
    raise InputError(f"{where}: which column to use? It has {_names(first)}; say it with {flags}")


def _languages(first: Record, options: dict[str, Any], where: str) -> Selection | None:
    """Columns that are named by their languages: {"de": …, "en": …} or {"translation": {"de": …, "en": …}}."""
    source, target = options.get("source_lang"), options.get("target_lang")
    nested = isinstance(first.get("translation"), Mapping)
    if source and target:
        for prefix in ("", "translation."):
            if all(reach(first, prefix + language) is not ABSENT for language in (source, target)):
                return Selection("pairs", (prefix + source, prefix + target), found=True)
    if nested and "source_column" in options:
        languages = ", ".join(first["translation"])
        raise InputError(f"{where}: a translation of {languages}; say which way with --source-lang and --target-lang")
    return None


def _require(first: Record, path: str, where: str) -> None:
    for name in fields(first, path):
        _require(first, name, where)
    if fields(first, path):
        return
    if reach(first, path) is ABSENT and path.split(".")[0] not in first:
        raise InputError(f"{where}: no column '{visible(path)}'; it has {_names(first)}{suggestion(path, first)}")


def _names(record: Record) -> str:
    plain = [visible(str(name), 40) for name in record]
    names = [name if name == name.strip() else f"'{name}'" for name in plain]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
