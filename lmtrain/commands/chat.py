"""`lmtrain chat`: talk to a causal model in the terminal."""

import json
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from lmtrain.commands.generate import LoadedForPrompts, generation_settings, load_for_prompts
from lmtrain.config.recipe import GenerateRequest
from lmtrain.data.chats import Chat, Message
from lmtrain.errors import InputError, LmtrainError, UsageError, visible
from lmtrain.modeling.network import positions
from lmtrain.objectives.clm import prompt_text
from lmtrain.objectives.generation import Decoder, GenerationSettings, end_ids
from lmtrain.objectives.prompting import PromptingOptions
from lmtrain.preprocessing import chat
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import write_text
from lmtrain.runtime.signals import handled_by

TEMPERATURE = 0.7
"""Sampling temperature where none is given: greedy answers of small models repeat themselves."""

ROOM = 4
"""At least one in so many positions of the model is kept for the answer."""

HELP = """/help                this list
/system TEXT         give the model instructions, from now on
/reset               forget the conversation
/undo                take the last question and its answer back
/temperature X       0 always takes the most likely token
/save FILE           save the conversation as a line of training data
/exit                end; so does Ctrl-D. Ctrl-C stops an answer."""


@dataclass
class Conversation:
    """What was said so far, and how it becomes a prompt."""

    model: LoadedForPrompts
    kind: str | None
    """The kind of rows that the model was trained on, where that is known."""
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    @property
    def has_template(self) -> bool:
        return bool(self.model.tokenizer.chat_template) and self.kind in (None, "messages")

    def all_messages(self) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def text(self) -> str:
        """Everything that was said as one text, for a model without a chat template."""
        parts = [self.system + "\n"] if self.system else []
        for message in self.messages:
            content = str(message["content"])
            parts.append(prompt_text(content) if message["role"] == "user" or content else "\n")
        joined = "".join(parts)
        return joined if self.kind == "prompt" else joined.removesuffix("\n")

    def ids(self) -> list[int]:
        tokenizer = self.model.tokenizer
        if self.has_template:
            return chat.prompt_ids(tokenizer, self.all_messages(), "the conversation")
        return list(tokenizer(self.text())["input_ids"])

    def shorten(self, new_tokens: int) -> int:
        """Leave the oldest messages out until there is room for an answer; how many. Raises InputError."""
        limit, left_out = positions(self.model.network), 0
        while limit and len(self.ids()) + min(new_tokens, limit // ROOM) > limit:
            if len(self.messages) < 2:
                raise InputError(f"the message alone is longer than the model's {limit} positions; shorten it")
            turn = 2 if len(self.messages) > 2 else 1
            del self.messages[:turn]
            left_out += turn
        return left_out

    def prompt(self) -> Chat | str:
        return Chat(self.all_messages()) if self.has_template else self.text()

    def line(self) -> str:
        """The conversation as a line of training data."""
        document = {"messages": self.all_messages()} if self.has_template else {"text": self.text()}
        return json.dumps(document, ensure_ascii=False) + "\n"


class Shell:
    """Reads what the user types, and lets the model answer."""

    def __init__(self, conversation: Conversation, settings: GenerationSettings, console: Console):
        self.conversation, self.settings, self.console = conversation, settings, console
        self.interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Until Ctrl-D, the end of the input or /exit."""
        with handled_by(_interrupt):
            while (line := self._read()) is not None:
                try:
                    if not self._do(line.rstrip()):
                        return
                except LmtrainError as error:
                    self.console.error(str(error))

    def _read(self) -> str | None:
        """A line; None at the end of the input."""
        while True:
            try:
                return input("you> " if self.interactive else "")
            except EOFError:
                self._say("")
                return None
            except KeyboardInterrupt:
                self._say("\n(Ctrl-D or /exit ends the chat)")

    def _do(self, line: str) -> bool:
        """Carry out a command or answer a message; whether the chat goes on."""
        if not line.startswith("/"):
            if line.strip():
                self._answer(line.strip())
            return True
        command, _, rest = line[1:].partition(" ")
        actions = {"help": self._help, "system": self._system, "reset": self._reset, "undo": self._undo,
                   "temperature": self._temperature, "save": self._save}  # fmt: skip
        if command in ("exit", "quit"):
            return False
        if command not in actions:
            raise UsageError(
                f"/{visible(command)}: no such command; /help lists them, and a space before the / sends it"
            )
        actions[command](rest.strip())
        return True

    # --- commands

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _system(self, text: str) -> None:
        self.conversation.system = text
        self._say(f"(instructions: {text})" if text else "(no instructions)")

    def _reset(self, _: str) -> None:
        self.conversation.messages.clear()
        self._say("(the conversation is forgotten)")

    def _undo(self, _: str) -> None:
        del self.conversation.messages[-2:]
        self._say(f"({len(self.conversation.messages)} messages are left)")

    def _temperature(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 100:
            raise UsageError(f"/temperature {visible(text)}: write a number from 0 on, such as 0.7")
        self.settings = with_temperature(self.settings, value)
        self._say(f"(temperature {value:g})")

    def _save(self, text: str) -> None:
        if not text:
            raise UsageError("/save FILE: name a file, such as /save chat.jsonl")
        path = Path(text)
        try:
            before = path.read_text(encoding="utf-8") if path.is_file() else ""
            before += "" if before.endswith("\n") or not before else "\n"
            write_text(path, before + self.conversation.line())
        except OSError as error:
            raise UsageError(f"/save {text}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"/save {text}: is not a text file; name another one") from None
        self._say(f"(saved to {path}, line {before.count(chr(10)) + 1})")

    # --- answers

    def _answer(self, text: str) -> None:
        """Show the answer as it is written, and remember it; what was written before Ctrl-C is kept."""
        talk, model = self.conversation, self.conversation.model
        before = list(talk.messages)
        talk.messages.append({"role": "user", "content": text})
        try:
            if left_out := talk.shorten(self.settings.max_new_tokens):
                self._say(
                    f"(the {left_out} oldest messages are left out: the model has {positions(model.network)} positions)"
                )
        except LmtrainError:
            talk.messages[:] = before
            raise
        streamer = Streamer(Decoder(model.tokenizer, end_ids(model.network)), skip_prompt=True)  # type: ignore[arg-type]
        options = PromptingOptions(self.settings, talk.kind, talk.has_template, "", 1, streamer)
        if self.interactive:
            sys.stdout.write("model> ")
            sys.stdout.flush()
        try:
            with torch.no_grad(), model.autocast():
                [answer] = model.objective.answer(model.network, model.tokenizer, [talk.prompt()], options)
            written = str(answer["output"])
        except KeyboardInterrupt:
            written = streamer.written
            self._say(" …")
        except LmtrainError:
            talk.messages[:] = before
            raise
        talk.messages.append({"role": "assistant", "content": written})

    def _say(self, text: str) -> None:
        """A line that is not the model's, on standard error."""
        self.console.err.print(text, markup=False)


class Streamer(TextStreamer):
    """Writes an answer as it is made, and keeps what it wrote."""

    written = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.written += text
        safe = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
        sys.stdout.write(safe + ("\n" if stream_end else ""))
        sys.stdout.flush()


def with_temperature(settings: GenerationSettings, value: float) -> GenerationSettings:
    """The settings with a sampling temperature; 0 always takes the most likely token."""
    if value == 0:
        return replace(settings, do_sample=False, temperature=None, top_k=None, top_p=None)
    return replace(settings, do_sample=True, temperature=value, num_beams=1)


def chat_with(request: GenerateRequest, kind: str | None, system: str, console: Console) -> None:
    """Load the model and talk until the user ends it. Raises an LmtrainError."""
    section = request.generate
    settings = generation_settings(section)
    if settings.num_beams > 1 or settings.num_return_sequences > 1:
        raise UsageError("chat writes one answer as it comes; --num-beams and --num-return-sequences are for generate")
    if not settings.do_sample:
        settings = with_temperature(settings, TEMPERATURE)
    model = load_for_prompts(request, "clm", console)
    conversation = Conversation(model, kind if section.chat else kind or "text", system)
    if not conversation.has_template:
        console.note("the model has no chat template: it continues the text of the whole conversation")
    _enable_editing()
    shell = Shell(conversation, settings, console)
    if shell.interactive:
        console.note(f"temperature {settings.temperature:g}; /help lists the commands, Ctrl-D ends")
    shell.run()


def _enable_editing() -> None:
    """Line editing and a history of what was typed, where the system has readline."""
    try:
        import readline  # noqa: F401  # it changes what input() does
    except ImportError:
        return


def _interrupt(number: int, frame: Any) -> None:
    """Ctrl-C stops an answer; SIGTERM ends the program."""
    if number == signal.SIGTERM:
        sys.exit(128 + number)
    raise KeyboardInterrupt
