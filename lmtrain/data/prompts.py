"""The prompts of `lmtrain generate`: from the command line, a file or standard input."""

import sys

from lmtrain.config.data import Prompts, TextData
from lmtrain.data import messages
from lmtrain.data.chat_layouts import chat_names
from lmtrain.data.chats import Chat
from lmtrain.data.columns import ABSENT, BadRow, Record, lookup
from lmtrain.data.sources import STDIN, is_stdin, notes_on, open_tables
from lmtrain.errors import InputError, UsageError, visible

TEXTS = (
    *("source", "question", "instruction", "text", "input", "document", "article", "dialogue", "content"),
    "sentence",
)
COLUMNS = ("prompt", *messages.COLUMNS, *TEXTS)
"""Names of the column of the prompts, in order of preference; TEXTS hold no chats."""

Prompt = str | Chat
"""A text, or a chat; if it ends with an answer, the model is not shown this one."""


def read(section: Prompts) -> tuple[list[Prompt], int, list[str]]:
    """Return (prompts, number of empty ones, notes on the data), from --prompt, else --data, else standard input.

    Each line of a text file or of standard input is a prompt. Raises InputError, UsageError.
    """
    if section.prompt and section.data:
        raise UsageError("--prompt and --data: give only one of them")
    if section.prompt:
        return list(section.prompt), 0, []
    if not section.data and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("--prompt is missing; give it, name a file with --data, or pipe lines in")
    data = section.data or ["-"]
    prompts: list[Prompt] = []
    empty = 0
    wanted = TextData(train=data, sample_by="line", encoding=section.encoding, text_column=section.column)
    tables = open_tables(data, wanted)
    for table in tables:
        column = section.column
        for number, record in table:
            column = column or _column(record, table.name)
            prompt = _prompt(record, column, table.location(number))
            if prompt is None:
                empty += 1
            else:
                prompts.append(prompt)
    if not prompts:
        names = (STDIN if is_stdin(name) else visible(name, 200) for name in data)
        raise InputError(f"{', '.join(names)}: contains no prompt")
    return prompts, empty, notes_on(tables)


def _prompt(record: Record, column: str, where: str) -> Prompt | None:
    """The prompt of a row; None if it is empty. Raises InputError naming `where`."""
    value = lookup(record, column)
    if value is ABSENT:
        raise InputError(f"{where}, column '{column}': is missing")
    if isinstance(value, str) and (column in TEXTS or not messages.is_chat(value)):
        return value.rstrip("\n") if value.strip() else None
    if not isinstance(value, str | list):
        raise InputError(f"{where}, column '{column}': is not text")
    answer = {"completion": record["completion"]} if messages.is_chat(record.get("completion")) else {}
    try:
        return messages.read_chat({column: value, **(answer if column == "prompt" else {})}, record)
    except BadRow as problem:
        raise InputError(f"{where}, {problem}") from None


def _column(record: Record, where: str) -> str:
    for name in COLUMNS:
        if name in record:
            return name
    chats = chat_names(record)
    if len(record) == 1 or len(chats) == 1:
        return [*chats, *record][0]
    raise InputError(
        f"{where}: which column holds the prompt? It has {', '.join(map(str, record))}; name it with --column"
    )
