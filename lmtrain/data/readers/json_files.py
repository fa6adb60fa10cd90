"""JSON lines and JSON files -> rows, with the line and column of what is wrong."""

import json
import re
from collections.abc import Callable, Sequence
from typing import IO, Any

from lmtrain.data.columns import BadRow, Entry, Record
from lmtrain.data.messages import COLUMNS, chat_column
from lmtrain.data.readers.nested_rows import is_nested
from lmtrain.data.readers.text_files import Numbered, decoded, read_all, undecodable
from lmtrain.errors import InputError, visible

IsRow = Callable[[Record], bool]
"""Whether an object is a row, rather than a wrapper around a list of rows."""


def _is_chat(record: Record) -> bool:
    return chat_column(record, COLUMNS) is not None


def read_json_lines(
    opener: Callable[[], IO[bytes]],
    encoding: str | None,
    name: str,
    is_row: IsRow = _is_chat,
    columns: Sequence[str] = (),
) -> Numbered:
    with decoded(opener, encoding, name, newline=None) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and line.lstrip().startswith("["):
                yield from _whole_json(read_all(lines, name, line), name, is_row, columns)
                return
            if line.strip():
                yield number, undecodable(line, lines) or _object(line.removesuffix("\n"), columns)


def read_json(
    opener: Callable[[], IO[bytes]],
    encoding: str | None,
    name: str,
    is_row: IsRow = _is_chat,
    columns: Sequence[str] = (),
) -> Numbered:
    with decoded(opener, encoding, name, newline=None) as lines:
        yield from _whole_json(read_all(lines, name), name, is_row, columns)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key '{visible(next(name for name in names if names.count(name) > 1))}'")
    return mapping


DECODER = json.JSONDecoder(object_pairs_hook=_mapping)


def _reason(error: ValueError) -> str:
    """The reason without the advice for programmers that follows a semicolon (on numbers of thousands of digits)."""
    return str(error).split(";")[0]


def _object(line: str, columns: Sequence[str]) -> Entry:
    try:
        return as_row(DECODER.decode(line), columns)
    except json.JSONDecodeError as error:
        return BadRow(f"column {error.colno}: not JSON: {error.msg}")
    except ValueError as error:
        return BadRow(_reason(error))
    except RecursionError:
        return BadRow("nested too deeply")


def as_row(value: Any, columns: Sequence[str] = ()) -> Entry:
    """The row that a value is: an object, or a list of the values of `columns`."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not columns:
        hint = "; --columns names the values of a list, e.g. --columns text,label" if isinstance(value, list) else ""
        return BadRow(f"a row must be an object {{…}}, not {type(value).__name__}{hint}")
    if len(value) != len(columns):
        return BadRow(f"has {len(value)} values, but --columns names {len(columns)}")
    return dict(zip(columns, value, strict=True))


def _whole_json(text: str, name: str, is_row: IsRow, columns: Sequence[str]) -> Numbered:
    """Yield the rows of an array of objects, of an object that contains one list of objects, or of several objects."""
    values = []
    between = re.compile(r"[\s,]*")
    position = len(text) - len(text.lstrip())
    while position < len(text):
        try:
            value, position = DECODER.raw_decode(text, position)
        except RecursionError:
            raise InputError(f"{name}: nested too deeply") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
        except ValueError as error:
            line = 1 + text.count("\n", 0, position)
            raise InputError(f"{name}, in the value that starts on line {line}: {_reason(error)}") from None
        values.append(value)
        position = between.match(text, position).end()  # type: ignore[union-attr]
    rows = values
    if len(values) == 1 and isinstance(values[0], dict):
        # {"version": 1, "data": [rows]}; but {"text": "…", "tags": [objects]} is a row
        held = () if is_row(values[0]) or is_nested(values[0]) else values[0].values()
        lists = [value for value in held if isinstance(value, list) and value and isinstance(value[0], dict)]
        rows = lists[0] if len(lists) == 1 else values
    elif len(values) == 1 and isinstance(values[0], list):
        rows = values[0]
    for number, value in enumerate(rows, 1):
        yield number, as_row(value, columns)
