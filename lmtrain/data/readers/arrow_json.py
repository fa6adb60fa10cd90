"""Decodes Arrow's JSON type: columns, also nested ones, whose values are JSON text (datasets stores mixed values so)."""

import json
from collections.abc import Callable
from typing import Any

Decode = Callable[[Any], Any]

NAME = "arrow.json"


def decoder(field: Any) -> Decode | None:
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
        inner = decoder(kind.value_field)
        return inner and (lambda values: values and [inner(value) for value in values])
    if types.is_struct(kind):
        decoders = {inner.name: decode for inner in kind if (decode := decoder(inner))}
        return (lambda value: value and _decoded(value, decoders)) if decoders else None
    return None


def _decoded(value: dict[str, Any], decoders: dict[str, Decode]) -> dict[str, Any]:
    return {name: decoders[name](inner) if name in decoders else inner for name, inner in value.items()}


def _loads(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
