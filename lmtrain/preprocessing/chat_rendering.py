"""Renders a chat under its template, with the messages and the calls of tools as this template takes them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from lmtrain.data.chats import THOUGHTS
from lmtrain.errors import InputError, TakesTooLong
from lmtrain.runtime import signals

Messages = list[dict[str, Any]]

Render = Callable[..., str]


PATIENCE = 2
"""Time limit for rendering a chat, in seconds."""


class RefusedChat(InputError):
    """A chat that its template refuses, or whose answers cannot be found in the rendered text."""


def template_of(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None = None) -> str:
    """The chat template; of several named ones the default, or `tool_use` for a chat with tools, as in transformers.

    Raises InputError if there are several and no default.
    """
    templates = cast(Any, tokenizer.chat_template)
    if not isinstance(templates, dict):
        return cast(str, templates)
    name = "tool_use" if tools and "tool_use" in templates else "default"
    if name not in templates and len(templates) > 1:
        raise InputError(
            f"the tokenizer has the chat templates {', '.join(templates)}, but none of the name default; "
            "give one of them that name"
        )
    return cast(str, templates.get(name) or next(iter(templates.values())))


def render_chat(
    tokenizer: PreTrainedTokenizerBase, template: str, where: str, messages: Messages, **options: Any
) -> str:
    """The chat as text. Raises RefusedChat naming `where`; TakesTooLong if rendering exceeds `PATIENCE`."""
    try:
        with signals.time_limit(PATIENCE):
            text = tokenizer.apply_chat_template(messages, tokenize=False, **{"chat_template": template, **options})
            return cast(str, text)
    except TakesTooLong:
        raise TakesTooLong(
            f"{where or 'a tiny chat'}: the tokenizer's chat template did not finish within {PATIENCE} seconds"
        ) from None
    except Exception as error:  # a template is a program and may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RefusedChat(f"{where}: the chat template raises an error: {reason}") from None


def placeholders(text: str) -> Iterator[str]:
    """Characters of a private use area that do not occur in the text."""
    present = set(text)
    return (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in present)


# --- calls of tools --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CallForm:
    """The form in which a template takes calls of tools."""

    content: str | None = ""
    """The content of a message that says nothing; None: it has none."""
    arguments_as_text: bool = False
    """Whether arguments are JSON text, not an object."""

    def applied(self, message: dict[str, Any]) -> dict[str, Any]:
        calls = [
            {**call, "function": {**call["function"], "arguments": self._arguments(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        return {**message, "content": message["content"] or self.content, "tool_calls": calls}

    def _arguments(self, value: object) -> object:
        if self.arguments_as_text:
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            return value
        return parsed if isinstance(parsed, dict) else value


FUNCTION, ARGUMENT = "lmtrain_function", "lmtrain_argument"


@lru_cache(maxsize=4)
def call_form(tokenizer: PreTrainedTokenizerBase, template: str) -> CallForm | None:
    """The form in which the template renders calls of tools, found by rendering tiny chats; None if it renders none."""
    asked, given = {"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}
    for content, as_text in product(("", None), (False, True)):
        form = CallForm(content, as_text)
        call = {"id": "lmtrain00", "type": "function", "function": {"name": FUNCTION, "arguments": {ARGUMENT: "b"}}}
        calling = form.applied({"role": "assistant", "content": "", "tool_calls": [call]})
        result = {"role": "tool", "tool_call_id": "lmtrain00", "name": FUNCTION, "content": "b"}
        for messages in ([asked, calling], [asked, calling, result, given]):
            try:
                text = render_chat(tokenizer, template, "", messages)
            except RefusedChat:
                continue
            # In quotes of another kind, or behind a \, the arguments are not written as JSON.
            if FUNCTION in text and ARGUMENT in text and not any(f"{mark}{ARGUMENT}" in text for mark in ('\\"', "'")):
                return form
    return None


def as_taken(tokenizer: PreTrainedTokenizerBase, template: str, messages: Messages) -> Messages:
    """The messages as the template takes them."""
    return [_taken(tokenizer, template, message) for message in messages]


def _taken(tokenizer: PreTrainedTokenizerBase, template: str, message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "developer" and "developer" not in template:  # a newer name of the system's role
        return {**message, "role": "system"}
    thoughts = next((message[key] for key in THOUGHTS if message.get(key)), None)
    if thoughts:  # newer versions of transformers do so as well
        message = {**message, **{key: thoughts for key in THOUGHTS if names(template, key)}}
    form = call_form(tokenizer, template) if message.get("tool_calls") else None
    return form.applied(message) if form else message


def names(template: str, key: str) -> bool:
    """Whether the template has the name of a key in it."""
    return re.search(rf"\b{re.escape(key)}\b", template) is not None
