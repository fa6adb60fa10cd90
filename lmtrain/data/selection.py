"""The selected columns, and the usable value that they give of each record.

There are these kinds of rows: `text` (one string), `prompt` (prompt, completion), `messages` (a chat), `pairs` (source,
target), and those with labels (labelled_rows.py): `labelled` (text, label), `several` (text, labels), `number` (text, number),
`tagged` (words, tags) and `question` (question and context, answers).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lmtrain.config.labelled_data import PAIR_SEPARATOR
from lmtrain.data.chats import Chat
from lmtrain.data.columns import ABSENT, BadRow, Record, lookup, number_or_text, template_fields, text_at
from lmtrain.data.labelled_rows import count_numbers, labelled_value
from lmtrain.data.labels import LABELLED
from lmtrain.data.messages import check_trainable, read_chat
from lmtrain.errors import visible

OPTIONS = {
    "messages": ("messages_column",),
    "prompt": ("prompt_column", "completion_column"),
    "text": ("text_column",),
    "pairs": ("source_column", "target_column"),
    **dict.fromkeys(("labelled", "several", "number"), ("text_column", "label_column")),
    "tagged": ("tokens_column", "tags_column"),
    "question": ("question_column", "context_column", "answers_column"),
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
        return " and ".join(f"'{visible(path.replace(PAIR_SEPARATOR, ' | '), 200)}'" for path in self.paths)

    def value(self, record: Record, counts: Counter[str] | None = None) -> Any:
        """The value of a record, or None where it is empty. `counts` counts what is converted. Raises BadRow.

        text: a string. prompt: two strings. pairs: the source and one or several targets. messages: a Chat. Rows with
        labels: see labelled_rows.py.
        """
        if self.kind == "messages":
            return _chat(record, self.paths)
        if self.kind == "pairs":
            return _pair(record, counts, *self.paths)
        if self.kind in LABELLED:
            return labelled_value(self.kind, record, self.paths, counts)
        if self.kind == "prompt":
            return _pair(record, counts, *self.paths, several=False)
        text = text_at(record, self.paths[0])
        return text if text.strip() else None


def _pair(
    record: Record, counts: Counter[str] | None, source_path: str, target_path: str, *, several: bool = True
) -> tuple[str, ...] | None:
    """The source and its targets, or only the first target. None where the source or every target is blank."""
    source = text_at(record, source_path)
    target = text_at(record, target_path) if template_fields(record, target_path) else lookup(record, target_path)
    references = target if isinstance(target, list | tuple) else [target]
    count_numbers(references, target_path, counts)
    targets = [text for text in (number_or_text(value, target_path) for value in references) if text.strip()]
    if counts is not None and not several and targets[1:]:
        counts[f"{{count}} lists in '{target_path}' have several texts, of which the first is used"] += 1
    return (source, *targets[: None if several else 1]) if source.strip() and targets else None


def _chat(record: Record, paths: tuple[str, ...]) -> Chat | None:
    columns = {path: lookup(record, path) for path in paths}
    for path, value in columns.items():
        if value is ABSENT or value is None:
            raise BadRow(f"column '{path}': is {'missing' if value is ABSENT else 'null'}")
    chat = read_chat(columns, record)
    if chat:
        check_trainable(chat, paths[-1])
    return chat
