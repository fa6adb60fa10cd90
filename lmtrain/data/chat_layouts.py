"""Finds the columns of chats in a table, by what their values look like."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmtrain.data.columns import Record, lookup
from lmtrain.data.messages import COLUMNS, chat_column, is_chat
from lmtrain.data.selection import Selection


def usual_chats(first: Record, kinds: Sequence[str]) -> Selection | None:
    """The column of chats that has a usual name, if chats are among the `kinds` that are read."""
    return _selection(chat_column(first, COLUMNS)) if "messages" in kinds else None


def only_chats(first: Record, kinds: Sequence[str]) -> Selection | None:
    """The only column of chats, whatever its name."""
    names = chat_names(first) if "messages" in kinds else []
    return _selection(names[0]) if len(names) == 1 else None


def chat_names(first: Record) -> list[str]:
    """The columns whose value in the record `first` is a chat."""
    return [name for name, value in first.items() if is_chat(value)]


def _selection(name: str | None) -> Selection | None:
    return Selection("messages", (name,), detected=True) if name is not None else None


def as_chats(selection: Selection, first: Record, kinds: Iterable[str]) -> Selection:
    """The selection, as one of chats if its columns hold messages: those of a chat, or of prompt and completion."""
    values = [lookup(first, path) for path in selection.paths]
    is_text = selection.kind == "text" and (not selection.detected or isinstance(values[0], str))
    if "messages" not in kinds or selection.kind not in ("prompt", "text") or is_text:
        return selection
    return replace(selection, kind="messages") if all(map(is_chat, values)) else selection
