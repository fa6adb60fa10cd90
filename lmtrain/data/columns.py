"""Finds values in the columns of a record: by name, by a dotted path, or by a template of several columns."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lmtrain.errors import visible

Record = Mapping[str, Any]
"""Column -> value."""

ABSENT = object()
"""The value where there is no such column."""
TWICE = object()
"""The value of a column whose name occurs twice in its table."""
FIELD = re.compile(r"\{([^{}]+)\}")
ESCAPED = re.compile(r"\\([nt\\])")


class BadRow(Exception):
    """A row that cannot be used. The message says why, without file and line."""

    def at(self, location: str) -> str:
        """The message with the file and line in front."""
        return f"{location}{',' if str(self).startswith('column') else ':'} {self}"


Entry = Record | BadRow
"""What a reader yields for a row: a record, or why there is none."""


def lookup(record: Record, path: str) -> Any:
    """The value at a dotted path, or ABSENT. A column whose own name contains the dots takes precedence.

    The path goes through lists: `answers.text` of [{"text": "a"}, {"text": "b"}] is ["a", "b"].
    """
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if isinstance(value, list):
            inner = [item[part] for item in value if isinstance(item, Mapping) and part in item]
            if len(inner) < len(value):
                return ABSENT
            value = inner
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            return ABSENT
    return value


def template_fields(record: Record, path: str) -> list[str]:
    """The columns in a template such as `question: {question} context: {context}`; empty where `path` is a column."""
    return [] if path in record else FIELD.findall(path)


def with_line_breaks(template: str) -> str:
    r"""The template in which `\n` and `\t`, as a shell passes them, are a line break and a tab, and `\\` is a backslash."""
    return ESCAPED.sub(lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], "\\"), template)


def text_at(record: Record, path: str) -> str:
    """The text of a column or a template. Raises BadRow.

    In a template numbers are text and null is empty. A line of a template whose columns are all empty is left out, and
    a template whose columns are all empty gives the empty string.
    """
    names = template_fields(record, path)
    if not names:
        return as_text(lookup(record, path), path)
    values = {name: lookup(record, name) for name in names}
    texts = {name: "" if value is None else number_or_text(value, name) for name, value in values.items()}
    filled = [_filled(line, texts) for line in path.split("\n")]
    return "\n".join(line for line in filled if line is not None) if any(map(str.strip, texts.values())) else ""


def _filled(line: str, texts: Mapping[str, str]) -> str | None:
    names = FIELD.findall(line)
    if names and not any(texts[name].strip() for name in names):
        return None
    return FIELD.sub(lambda field: texts[field[1]], line)


def as_text(value: Any, path: str) -> str:
    """The value, which must be a valid string. `path` names it in the message. Raises BadRow."""
    if value is ABSENT:
        raise BadRow(f"column '{path}': is missing")
    if value is None:
        raise BadRow(f"column '{path}': is null")
    if not isinstance(value, str):
        raise BadRow(f"column '{path}': is {type(value).__name__} {visible(repr(value), 30)}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"column '{path}': contains a lone surrogate, which is not a valid character") from None
    return value


def spellings(language: str | None) -> list[str]:
    """A language code as it is and without country or script: en_XX and en, zh-Hans and zh."""
    return list(dict.fromkeys((language, re.split("[_-]", language)[0]))) if language else []


def is_number(value: Any) -> bool:
    """Whether a value is a number or a boolean."""
    return isinstance(value, bool | int | float | Decimal)


def number_or_text(value: Any, path: str) -> str:
    """The value as text; it may be a number or a boolean. Raises BadRow."""
    if not is_number(value):
        return as_text(value, path)
    if value != value:  # nan, which stands for a missing value
        raise BadRow(f"column '{path}': is {value}, not a number")
    return str(value)
