"""The selected columns, and the usable value that they give of each record.

There are six kinds of rows: `text` (one string), `prompt` (prompt, completion), `messages` (a chat), `pairs` (source,
target), `labelled` (text, label) and `tagged` (words, tags).
"""

from dataclasses import dataclass
from typing import Any

from lmtrain.data.chats import Chat
from lmtrain.data.columns import ABSENT, BadRow, Record, as_text, lookup, template_fields, text_at
from lmtrain.data.messages import check_trainable, read_chat

OPTIONS = {
    "messages": ("messages_column",),
    "prompt": ("prompt_column", "completion_column"),
    "text": ("text_column",),
    "pairs": ("source_column", "target_column"),
    "labelled": ("text_column", "label_column"),
    "tagged": ("tokens_column", "tags_column"),
}
"""Kind of rows -> options that name its columns."""


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

        text: a string. prompt and labelled: two strings. pairs: the source and one or several targets. messages: a
        Chat. tagged: two lists of strings.
        """
        if self.kind == "messages":
            return _chat(record, self.paths)
        if self.kind == "pairs":
            return _pair(record, *self.paths)
        if self.kind == "labelled":
            return _labelled(record, *self.paths)
        if self.kind == "tagged":
            return _tagged(record, *self.paths)
        strings = [text_at(record, path) for path in self.paths]
        if any(not string.strip() for string in strings):
            return None
        return strings[0] if self.kind == "text" else tuple(strings)


def _pair(record: Record, source_path: str, target_path: str) -> tuple[str, ...] | None:
    source = text_at(record, source_path)
    target = text_at(record, target_path) if template_fields(record, target_path) else lookup(record, target_path)
    references = target if isinstance(target, list | tuple) else [target]
    targets = [text for text in (as_text(value, target_path) for value in references) if text.strip()]
    return (source, *targets) if source.strip() and targets else None


def _labelled(record: Record, text_path: str, label_path: str) -> tuple[str, str] | None:
    text, label = text_at(record, text_path), _label(lookup(record, label_path), label_path)
    return (text, label) if text.strip() else None


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


def _label(value: Any, path: str) -> str:
    """A label as text; it may be a name, a class number or a boolean."""
    label = str(value) if isinstance(value, bool | int) else as_text(value, path)
    if not label.strip():
        raise BadRow(f"column '{path}': is empty")
    return label


def _chat(record: Record, paths: tuple[str, ...]) -> Chat | None:
    columns = {path: lookup(record, path) for path in paths}
    for path, value in columns.items():
        if value is ABSENT or value is None:
            raise BadRow(f"column '{path}': is {'missing' if value is ABSENT else 'null'}")
    chat = read_chat(columns, record)
    if chat:
        check_trainable(chat, paths[-1])
    return chat
