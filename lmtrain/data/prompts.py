"""What `lmtrain generate` is asked: prompts from the command line, a file or standard input."""

import sys
from typing import Any

from lmtrain.config.data import Prompts, TextData
from lmtrain.data.columns import ABSENT, reach
from lmtrain.data.sources import is_stdin, open_tables
from lmtrain.errors import InputError, UsageError, visible

COLUMNS = (
    "prompt", "source", "question", "instruction", "text", "input", "document", "article", "dialogue", "content",
    "sentence", "messages",
)  # fmt: skip
"""Where a prompt is looked for, in this order."""

Prompt = str | list[dict[str, Any]]
"""A text, or a chat as a list of messages."""


def read(section: Prompts) -> tuple[list[Prompt], int]:
    """(the prompts that were typed, else those in the data (as for training), else on standard input; empty ones).

    Of a text file or standard input every line is one. Raises InputError, UsageError.
    """
    if section.prompt and section.data:
        raise UsageError("--prompt and --data: give one of the two")
    if section.prompt:
        return list(section.prompt), 0
    if not section.data and sys.stdin.isatty():
        raise UsageError("--prompt is missing; or name a file with --data, or pipe lines in")
    data = section.data or ["-"]
    found: list[Prompt] = []
    empty = 0
    for table in open_tables(data, TextData(train=data, sample_by="line", encoding=section.encoding)):
        column = section.column
        for number, record in table:
            column = column or _column(record, table.name)
            value = reach(record, column)
            if value is ABSENT:
                raise InputError(f"{table.place(number)}, column '{column}': is missing")
            if not isinstance(value, str | list):
                raise InputError(f"{table.place(number)}, column '{column}': is not text")
            if isinstance(value, str) and not value.strip():
                empty += 1
                continue
            found.append(value.rstrip("\n") if isinstance(value, str) else value)
    if not found:
        names = ("standard input" if is_stdin(name) else visible(name, 200) for name in data)
        raise InputError(f"{', '.join(names)}: no prompt in it")
    return found, empty


def _column(record: Any, where: str) -> str:
    for name in COLUMNS:
        if name in record:
            return name
    if len(record) == 1:
        return next(iter(record))
    raise InputError(
        f"{where}: which column holds the prompt? It has {', '.join(map(str, record))}; say it with --column"
    )
