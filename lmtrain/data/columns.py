"""Finds values in the columns of a record: by name, by a dotted path, or by a template of several columns."""

import re
from collections.abc import Mapping
from typing import Any

from lmtrain.errors import visible

Record = Mapping[str, Any]
"""Column -> value."""

ABSENT = object()
FIELD = re.compile(r"\{([^{}]+)\}")


class BadRow(Exception):
    """A row with an unusable value. The message says why; the reader adds the file and line."""


def lookup(record: Record, path: str) -> Any:
    """The value at a dotted path, or ABSENT. A column whose own name contains the dots takes precedence."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def template_fields(record: Record, path: str) -> list[str]:
    """The columns in a template such as `question: {question} context: {context}`; empty where `path` is a column."""
    return [] if path in record else FIELD.findall(path)


def text_at(record: Record, path: str) -> str:
    """The text of a column or a template. A template whose columns are all empty gives the empty string.

    Raises BadRow.
    """
    names = template_fields(record, path)
    if not names:
        return as_text(lookup(record, path), path)
    texts = {name: as_text(lookup(record, name), name) for name in names}
    return FIELD.sub(lambda field: texts[field[1]], path) if any(text.strip() for text in texts.values()) else ""


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
