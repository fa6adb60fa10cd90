"""The prompts of `lmtrain generate`: from the command line, a file or standard input."""

import sys
from itertools import chain, islice

from lmtrain.config.data import Prompts, TextData
from lmtrain.config.labelled_data import PAIR_SEPARATOR
from lmtrain.data import messages
from lmtrain.data.chat_layouts import chat_names
from lmtrain.data.chats import Chat
from lmtrain.data.columns import ABSENT, BadRow, Entry, Record, lookup, template_fields, text_at
from lmtrain.data.layouts import FirstValues, as_template, column_names, joined, left_out, require
from lmtrain.data.reading import PEEKED
from lmtrain.data.sources import open_tables
from lmtrain.data.tables import STDIN, Table, is_stdin, notes_on
from lmtrain.errors import InputError, UsageError, visible

TEXTS = (
    *("source", "question", "instruction", "text", "input", "document", "article", "dialogue", "content"),
    *("sentence", "premise", "sentence1", "question1"),
)
COLUMNS = ("prompt", *messages.COLUMNS, *TEXTS)
"""Names of the column of the prompts, in order of preference; TEXTS hold no chats."""

Prompt = str | Chat
"""A text, or a chat; if it ends with an answer, the model is not shown this one."""


def read(section: Prompts, of_run: str | None = None, joint: str = "\n") -> tuple[list[Prompt], int, list[str]]:
    """Return (prompts, number of empty ones, notes on the data), from --prompt, else --data, else standard input.

    Each line of a text file or of standard input is a prompt. In rows a prompt is made as the model's run made its
    inputs: from the column or template `of_run`; `joint` is between columns that belong together. Raises InputError, UsageError.
    """
    if section.prompt and section.data:
        raise UsageError("--prompt and --data: give only one of them")
    if section.prompt:
        return list(section.prompt), 0, []
    if not section.data and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("--prompt is missing; give it, name a file with --data, or pipe lines in")
    data = section.data or ["-"]
    found: list[Prompt | None] = []
    notes: dict[str, None] = {}
    wanted = TextData(
        train=data,
        sample_by="line",
        encoding=section.encoding,
        columns=section.columns,
        text_column=section.column,
    )
    tables = open_tables(data, wanted)
    for table in tables:
        numbered = iter(table)
        peeked = list(islice(numbered, PEEKED))
        records = [_record(entry, table.location(number)) for number, entry in peeked]
        if not records:
            continue
        first = FirstValues(records)
        path = _path(first, section.column, of_run, table, joint)
        if not table.is_text:
            notes[f"{table.name}: using '{visible(path.replace(PAIR_SEPARATOR, ' | '), 200)}' as the prompt"] = None
        if path not in first or isinstance(first[path], str):
            notes |= dict.fromkeys(f"{table.name}: {line}" for line in left_out([path], records, "--column"))
        found += (_prompt(entry, path, table.location(number)) for number, entry in chain(peeked, numbered))
    prompts = [prompt for prompt in found if prompt is not None]
    if not prompts:
        names = (STDIN if is_stdin(name) else visible(name, 200) for name in data)
        raise InputError(f"{', '.join(names)}: contains no prompt")
    return prompts, len(found) - len(prompts), [*notes_on(tables), *notes]


def _path(first: FirstValues, column: str | None, of_run: str | None, table: Table, joint: str) -> str:
    """The column or the template of the prompts. Raises InputError."""
    if column:
        require(first, column, table.name, table.hint)
        return as_template(first, column)
    if of_run:
        names = template_fields(first, of_run) or [of_run]
        missing = [name for name in names if lookup(first, name) is ABSENT]
        if not missing:
            return as_template(first, of_run)
        if len(missing) < len(names):
            raise InputError(
                f"{table.name}: no column '{visible(missing[0])}', but the model was trained on '{visible(of_run, 200)}'; "
                "add the column, or name another column or template with --column"
            )
    path = joined(first, _usual_column(first, table), joint)
    for name in template_fields(first, path) or [path]:
        require(first, name, table.name)
    return path


def _usual_column(first: FirstValues, table: Table) -> str:
    name = next((name for name in COLUMNS if name in first), None)
    chats = chat_names(first) if name is None else []
    if name is not None or len(first) == 1 or len(chats) == 1:
        return name or [*chats, *first][0]
    raise InputError(
        f"{table.name}: which column holds the prompt? It has {column_names(first)}; name it with --column{table.hint}"
    )


def _record(entry: Entry, where: str) -> Record:
    if isinstance(entry, BadRow):
        raise InputError(entry.at(where))
    return entry


def _prompt(entry: Entry, path: str, where: str) -> Prompt | None:
    """The prompt of a row; None if it is empty. Raises InputError naming `where`."""
    record = _record(entry, where)
    try:
        value = text_at(record, path) if template_fields(record, path) else lookup(record, path)
        if value is ABSENT:
            raise BadRow(f"column '{path}': is missing")
        if isinstance(value, str) and (path in TEXTS or not messages.is_chat(value)):
            return value.rstrip("\n") if value.strip() else None
        if not isinstance(value, str | list):
            raise BadRow(f"column '{path}': is not text")
        answer = {"completion": record["completion"]} if messages.is_chat(record.get("completion")) else {}
        return messages.read_chat({path: value, **(answer if path == "prompt" else {})}, record)
    except BadRow as problem:
        raise InputError(problem.at(where)) from None
