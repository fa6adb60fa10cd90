"""The chats of a data set -> token ids, and what their template refuses, leaves out or makes no use of."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.data.chats import THOUGHTS, Chat
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, visible
from lmtrain.preprocessing import chat
from lmtrain.preprocessing.chat_rendering import RefusedChat, names, placeholders, render_chat, template_of

NOT_BY_NAME = ("role", "content", "tool_calls", "tool_call_id", "name")
"""Keys of messages that are checked in other ways, or that no text is expected to show."""


@dataclass
class EncodedChats:
    """Encodes the chats of `rows` one by one. A chat that its template refuses is an error; with `on_bad` drop, None."""

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    on_bad: str
    refused: list[str] = field(default_factory=list)
    """Why, for each refused chat."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What the template does not do -> chats."""
    unused_keys: Counter[str] = field(default_factory=Counter)
    """Key of messages -> chats."""

    def __iter__(self) -> Iterator[tuple[list[int], np.ndarray] | None]:
        for index, value in enumerate(self.rows.values):
            try:
                yield self._encoded(value, self.rows.location(index))
            except RefusedChat as problem:
                if self.on_bad == "error":
                    raise InputError(f"{problem}; --on-bad drop leaves such rows out") from None
                self.refused.append(str(problem))
                yield None
        if self.refused and len(self.refused) == len(self.rows.values) and not self.rows.is_chunk:
            raise InputError(
                f"{self.refused[0]}; no chat is left, because none of the {len(self.refused):,} can be used"
            )

    def _encoded(self, value: Chat, where: str) -> tuple[list[int], np.ndarray]:
        rendered = chat.rendered(self.tokenizer, value.messages, where, value.tools)
        encoded = chat.tokenized(self.tokenizer, rendered, value.untrained)
        template = template_of(self.tokenizer, value.tools)
        self.left_out.update(dict.fromkeys(_left_out(self.tokenizer, template, value, rendered)).keys())
        keys = dict.fromkeys(k for message in value.messages for k in message if message[k] and k not in NOT_BY_NAME)
        self.unused_keys.update(
            key for key in keys if not any(names(template, name) for name in (THOUGHTS if key in THOUGHTS else (key,)))
        )
        return encoded

    def warnings(self) -> list[str]:
        """What to tell about the chats that were encoded."""
        total = len(self.rows.values)
        lines = [f"the chat template {what} ({count:,} of {total:,} chats)" for what, count in self.left_out.items()]
        if self.unused_keys:
            keys = ", ".join(f"'{visible(key)}'" for key, _ in self.unused_keys.most_common(10))
            lines.append(f"the chat template makes no use of these keys of messages, which are left out: {keys}")
        if self.refused:
            lines.append(f"{len(self.refused):,} of {total:,} chats are left out as bad, the first: {self.refused[0]}")
        return lines


def _left_out(
    tokenizer: PreTrainedTokenizerBase, template: str, value: Chat, rendered: chat.RenderedChat
) -> Iterator[str]:
    """What of a chat its template does not render."""
    text, options = rendered.text, {"tools": value.tools} if value.tools else {}
    if value.tools and not any(_name_of(tool) in text for tool in value.tools):
        yield "has no place for the definitions in the column 'tools', which are left out"
    if any(a["role"] != b["role"] for a, b in zip(value.messages, rendered.messages, strict=True)):
        yield "does not know the role 'developer', which is written as 'system'"
    marks = placeholders(text)
    call_mark, calls = next(marks), sum(len(message.get("tool_calls", ())) for message in value.messages)
    doubtful = {
        index: mark
        for (index, message), mark in zip(enumerate(value.messages), marks, strict=False)
        if message["content"].strip() and message["content"].strip() not in text
    }
    if not doubtful and not calls:
        return
    # The template may have changed these contents rather than left them out.
    marked = [
        _with_name({**message, "content": doubtful.get(index, message["content"])}, call_mark)
        for index, message in enumerate(rendered.messages)
    ]
    try:
        shown = render_chat(tokenizer, template, rendered.where, marked, **options)
    except RefusedChat:
        return
    if shown.count(call_mark) < calls:
        yield "does not render calls of tools, which are left out"
    for index, mark in doubtful.items():
        if mark not in shown:
            yield f"does not render some messages of the role '{value.messages[index]['role']}', which are left out"


def _with_name(message: dict[str, Any], name: str) -> dict[str, Any]:
    """The message with another name for the functions that it calls."""
    if "tool_calls" not in message:
        return message
    calls = [{**call, "function": {**call["function"], "name": name}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _name_of(tool: object) -> str:
    """The name in a definition of a tool."""
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""
