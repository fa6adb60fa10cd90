"""A chat as a value of the data: its messages, its tools, and which answers are trained."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
"""{role, content, …}: the content is a text, empty where a message only calls tools. No value is null."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of messages under which the assistant's thoughts are found."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat, whatever the layout of its row."""

    messages: list[Message]
    tools: list[Any] | None = None
    """Definitions of the tools that the assistant may call."""
    untrained: tuple[int, ...] = ()
    """Indices of the assistant's messages that are only read."""
    remarks: tuple[str, ...] = ()
    """What was read differently from how it is written, and what was left out."""

    def __str__(self) -> str:
        return str(self.messages[-1]["content"]) if self.messages else ""

    def __len__(self) -> int:
        return len(self.messages)

    def texts(self) -> Iterator[str]:
        """Yield everything that is said."""
        for message in self.messages:
            yield from (message[key] for key in (*THOUGHTS, "content") if isinstance(message.get(key), str))
            if "tool_calls" in message:
                yield json.dumps(message["tool_calls"], ensure_ascii=False)

    def to_json(self) -> str:
        """Everything that the tokens depend on."""
        more = {name: value for name in ("tools", "untrained") if (value := getattr(self, name))}
        return json.dumps({"messages": self.messages, **more} if more else self.messages, ensure_ascii=False)

    @property
    def ends_with_answer(self) -> bool:
        return len(self.messages) > 1 and self.messages[-1]["role"] == "assistant"

    def question(self) -> "Chat":
        """The chat without the answer that it ends with, if it ends with one."""
        return replace(self, messages=self.messages[:-1]) if self.ends_with_answer else self


def chat_notes(chats: Sequence[Chat]) -> list[str]:
    """One line on how the chats were read, if not as they are written."""
    counts = Counter(remark for chat in chats for remark in chat.remarks)
    told = "; ".join(f"{remark} ({count:,} of {len(chats):,})" for remark, count in counts.items())
    return [f"chats: {told}"] if told else []
