"""Chats in the layouts that data sets have -> messages as chat templates take them.

A layout is known by its values. What is read differently from how it is written, or left out, is remarked.
"""

import ast
import json
import warnings
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from lmtrain.data.chats import THOUGHTS, Chat, Message
from lmtrain.data.columns import BadRow
from lmtrain.data.tool_calls import TOOL_COLUMNS, calls_of, definitions
from lmtrain.errors import visible

COLUMNS = ("messages", "conversations", "conversation")
"""The usual names of a column of chats, the most usual first."""

ROLES = ("system", "developer", "user", "assistant", "tool")

ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bard", "bing"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "function_response", "function_result"), "tool"),
}
"""Role in a data set -> role of ROLES."""

CALLING = ("function_call", "tool_call", "tool_calls")
"""Roles of messages whose content is a call of a tool by the assistant, as JSON."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "sender"), ("content", "value", "text", "parts")
WEIGHT_KEYS = ("weight", "train", "training", "loss")
"""Keys that say by 0 or false that a message is not trained."""

TEXT_PARTS = ("text", "input_text", "output_text")
SYSTEM_COLUMNS = ("system", "system_prompt")
RIVALS = ("chosen", "rejected", "prompt", "completion")
"""Columns beside a chat that often hold another one."""

Remarks = dict[str, None]
"""Remarks on a chat, each once."""


def chat_column(first: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of `names` whose value in the record `first` is a chat."""
    return next((name for name in names if name in first and is_chat(first[name])), None)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, or the text of such a list."""
    messages = _parsed(value) if isinstance(value, str) else value
    messages = _unfolded(messages) if isinstance(messages, Mapping) else messages
    start = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(start, Mapping) and all(any(key in start for key in keys) for keys in (ROLE_KEYS, CONTENT_KEYS))


def read_chat(columns: Mapping[str, Any], record: Mapping[str, Any]) -> Chat | None:
    """The chat of a row; None if it has no messages. Raises BadRow.

    `columns` are the values of its column of messages, or of its columns of prompt and completion: then only the
    completion is trained. Other columns of the `record` may hold the system's message and the tools.
    """
    remarks: Remarks = {}
    parts = [_messages(value, path, remarks) for path, value in columns.items()]
    turns = [turn for part in parts for turn in part]
    if not turns:
        return None
    beside = (*SYSTEM_COLUMNS, *TOOL_COLUMNS, *RIVALS)
    others = {name: value for name in beside if name not in columns and (value := record.get(name))}
    context = sum(map(len, parts[:-1]))
    if system := _system(others, turns[0][0], remarks):
        turns, context = [(system, True), *turns], context + 1
    answers = [index for index, (message, _) in enumerate(turns) if message["role"] == "assistant"]
    untrained = tuple(index for index in answers if index < context or not turns[index][1])
    if any(not turns[index][1] for index in answers):
        remarks["messages of weight 0 are not trained"] = None
    for name in RIVALS:
        if name in others:
            remarks[f"the column '{name}' is not used"] = None
    return Chat([message for message, _ in turns], _tools(others, remarks), untrained, tuple(remarks))


def check_trainable(chat: Chat, path: str) -> None:
    """Raise BadRow for a chat in which the assistant says nothing that is trained."""
    speaking = {i for i, message in enumerate(chat.messages) if message["role"] == "assistant" and _says(message)}
    if not speaking:
        raise BadRow(f"column '{path}': no assistant turn, so there is nothing to train on")
    if speaking <= set(chat.untrained):
        raise BadRow(f"column '{path}': no assistant turn is trained: all are in the prompt or have weight 0")


# --- a list of messages ----------------------------------------------------------------------------------------------


def _messages(value: Any, path: str, remarks: Remarks) -> list[tuple[Message, bool]]:
    """(message, whether it is trained) for each."""
    if isinstance(value, str):
        value = _parsed(value)
        remarks["a chat written as text is parsed"] = None
    if isinstance(value, Mapping):
        value = _unfolded(value)
    if isinstance(value, list):
        value = [_parsed(item) if isinstance(item, str) else item for item in value]
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise BadRow(f"column '{path}': is not a list of {{role, content}} messages")
    return [_message(message, path, number, remarks) for number, message in enumerate(value, 1)]


def _parsed(text: str) -> Any:
    """The list or object that a text writes as JSON or as Python does; None if it writes none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    with warnings.catch_warnings(action="ignore"):  # Python warns about escapes that it does not know
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
    return None


def _unfolded(value: Mapping[str, Any]) -> Any:
    """The messages in {"messages": […]}, or in {"role": […], "content": […]}, as datasets writes sequences of them."""
    if name := next((name for name in COLUMNS if name in value), None):
        return value[name]
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    if not lists or len({len(items) for items in lists.values()}) > 1:
        return value
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _message(given: Mapping[str, Any], path: str, number: int, remarks: Remarks) -> tuple[Message, bool]:
    where = f"column '{path}', message {number}"
    message = without_nulls(given)
    role_key = next((key for key in ROLE_KEYS if key in message), "role")
    content_key = next((key for key in CONTENT_KEYS if key in message), "content")
    for key, usual in ((role_key, "role"), (content_key, "content")):
        if key != usual:
            remarks[f"the key '{key}' of messages is read as '{usual}'"] = None
    role, is_call = _role(message.pop(role_key, None), where, remarks)
    content = message.pop(content_key, None)
    trained = _weight(message, where)
    try:
        if calls := calls_of(message, content, is_call, remarks):
            message["tool_calls"] = calls
    except ValueError as problem:
        raise BadRow(f"{where}: {problem}") from None
    content = "" if is_call else content
    if content is None and not (role == "tool" or (role == "assistant" and _says(message))):
        raise BadRow(f"column '{path}[{number}].content': is null")
    message = {"role": role, "content": _text(content, role, where, remarks), **message}
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise BadRow(f"{where}: contains a value that JSON cannot represent") from None
    return message, trained


def without_nulls(value: Any) -> Any:
    """A copy without the keys whose value is null: Arrow gives every message the keys of all others."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def _role(value: Any, where: str, remarks: Remarks) -> tuple[str, bool]:
    """(the role, whether the message is a call of a tool)."""
    name = "_".join(value.strip().lower().replace("-", " ").split()) if isinstance(value, str) else ""
    is_call = name in CALLING
    role = name if name in ROLES else "assistant" if is_call else ALIASES.get(name)
    if role is None:
        raise BadRow(f"{where}: unknown role {visible(repr(value))}; known are {', '.join(ROLES)}")
    if role != value:
        remarks[f"the role '{visible(value)}' is read as '{role}'"] = None
    return role, is_call


def _weight(message: Message, where: str) -> bool:
    """Whether the message is trained; its keys that say so are removed."""
    for key in WEIGHT_KEYS:
        value = message.get(key)
        if isinstance(value, bool | int | float) and value in (0, 1):
            return bool(message.pop(key))
        if key == WEIGHT_KEYS[0] and value is not None:
            raise BadRow(f"{where}: the weight is {visible(repr(value))}; it can be 0 (not trained) or 1")
    return True


def _says(message: Message) -> bool:
    texts = (message.get(key) for key in ("content", *THOUGHTS))
    return bool(message.get("tool_calls")) or any(isinstance(text, str) and text.strip() for text in texts)


# --- contents --------------------------------------------------------------------------------------------------------


def _text(content: Any, role: str, where: str, remarks: Remarks) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in parts]
    if None not in texts:
        remarks["a content of text parts is read as their text"] = None
        return "".join(text or "" for text in texts)
    if role == "tool":
        remarks["the content of a tool's message is written as JSON"] = None
        return json.dumps(content, ensure_ascii=False, default=str)
    odd = parts[texts.index(None)]
    if not isinstance(odd, Mapping):
        raise BadRow(f"{where}: the content is {type(odd).__name__} {visible(repr(odd), 30)}, not text")
    kind = odd.get("type") or ", ".join(map(str, odd))
    raise BadRow(f"{where}: the content has a part of type '{visible(str(kind))}'; only text parts are read")


def _text_of_part(part: Any) -> str | None:
    """The text of a text part such as {"type": "text", "text": …}."""
    if not isinstance(part, Mapping) or part.get("type", "text") not in TEXT_PARTS:
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


# --- columns beside the messages -------------------------------------------------------------------------------------


def _system(others: Mapping[str, Any], first: Message, remarks: Remarks) -> Message | None:
    """The system's message, where a column of its own holds it."""
    for name in SYSTEM_COLUMNS:
        text = others.get(name)
        if not isinstance(text, str) or not text.strip():
            continue
        if first["role"] not in ("system", "developer"):
            remarks[f"the column '{name}' is read as the system's message"] = None
            return {"role": "system", "content": text}
        if text.strip() != first["content"].strip():
            remarks[f"the column '{name}' is not used, because the chat has a message of the system"] = None
    return None


def _tools(others: Mapping[str, Any], remarks: Remarks) -> list[Any] | None:
    for name in TOOL_COLUMNS:
        value = others.get(name)
        if not value:
            continue
        found = definitions(without_nulls(_parsed(value) if isinstance(value, str) else value))
        if found is None:
            remarks[f"the column '{name}' is not used: it holds no definitions of tools"] = None
        elif found:
            remarks[f"the column '{name}' is read as definitions of tools"] = None
            return found
    return None
