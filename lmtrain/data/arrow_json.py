"""Decodes Arrow's JSON type: columns, also nested ones, whose values are JSON text (datasets stores mixed values so)."""

import json
from collections.abc import Callable
from typing import Any

Decode = Callable[[Any], Any]

NAME = "arrow.json"


def row_decoder(schema: Any) -> Decode:
    """A function that decodes the JSON in a row of an Arrow table with this schema."""
    decoders = {field.name: decode for field in schema if (decode := _decoder(field))}
    if not decoders:
        return lambda row: row
    return lambda row: {name: decoders[name](value) if name in decoders else value for name, value in row.items()}


def _decoder(field: Any) -> Decode | None:
    """What decodes a value of the field; None if it holds no JSON."""
    from pyarrow import types

    kind = field.type
    # An extension type that pyarrow does not know is named in the metadata of the field only.
    if (
        getattr(kind, "extension_name", None) == NAME
        or (field.metadata or {}).get(b"ARROW:extension:name") == NAME.encode()
    ):
        return _loads
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _decoder(kind.value_field)
        return inner and (lambda values: values and [inner(value) for value in values])
    if types.is_struct(kind):
        inside = row_decoder(kind)
        return (lambda value: value and inside(value)) if any(map(_decoder, kind)) else None
    return None


def _loads(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
