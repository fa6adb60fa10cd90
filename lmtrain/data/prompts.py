"""The prompts of `lmtrain generate`: from the command line, a file or standard input."""

import sys
from typing import Any

from lmtrain.config.data import Prompts, TextData
from lmtrain.data.columns import ABSENT, Record, lookup
from lmtrain.data.sources import is_stdin, open_tables
from lmtrain.errors import InputError, UsageError, visible

COLUMNS = (
    *("prompt", "source", "question", "instruction", "text", "input", "document", "article", "dialogue", "content"),
    *("sentence", "messages"),
)
"""Names of the column of the prompts, in order of preference."""

Prompt = str | list[dict[str, Any]]
"""A text, or a chat: a list of messages."""


def read(section: Prompts) -> tuple[list[Prompt], int]:
    """Return (prompts, number of empty ones), from --prompt, else --data, else standard input.

    Each line of a text file or of standard input is a prompt. Raises InputError, UsageError.
    """
    if section.prompt and section.data:
        raise UsageError("--prompt and --data: give only one of them")
    if section.prompt:
        return list(section.prompt), 0
    if not section.data and sys.stdin.isatty():
        raise UsageError("--prompt is missing; give it, name a file with --data, or pipe lines in")
    data = section.data or ["-"]
    prompts: list[Prompt] = []
    empty = 0
    for table in open_tables(data, TextData(train=data, sample_by="line", encoding=section.encoding)):
        column = section.column
        for number, record in table:
            column = column or _column(record, table.name)
            value = lookup(record, column)
            if value is ABSENT:
                raise InputError(f"{table.location(number)}, column '{column}': is missing")
            if not isinstance(value, str | list):
                raise InputError(f"{table.location(number)}, column '{column}': is not text")
            if isinstance(value, str) and not value.strip():
                empty += 1
                continue
            prompts.append(value.rstrip("\n") if isinstance(value, str) else value)
    if not prompts:
        names = ("standard input" if is_stdin(name) else visible(name, 200) for name in data)
        raise InputError(f"{', '.join(names)}: contains no prompt")
    return prompts, empty


def _column(record: Record, where: str) -> str:
    for name in COLUMNS:
        if name in record:
            return name
    if len(record) == 1:
        return next(iter(record))
    raise InputError(
        f"{where}: which column holds the prompt? It has {', '.join(map(str, record))}; name it with --column"
    )
