"""Calls and definitions of tools, as several makers write them -> OpenAI's layout, which chat templates take."""

import json
from collections.abc import Mapping
from typing import Any

from lmtrain.errors import visible

TOOL_COLUMNS = ("tools", "functions")
"""Columns beside a chat that hold the definitions of its tools."""

ARGUMENT_KEYS = ("arguments", "parameters", "input")


def calls_of(message: dict[str, Any], content: Any, is_call: bool, remarks: dict[str, None]) -> list[dict[str, Any]]:
    """The calls of a message, whose keys of calls are removed. Raises ValueError, which says what is wrong.

    With `is_call` the content is the call. The arguments stay as they are: an object, or JSON text.
    """
    given = message.pop("tool_calls", None)
    if function := message.pop("function_call", None):
        remarks["'function_call' is read as 'tool_calls'"] = None
        given = [function]
    if is_call:
        given = content
    if isinstance(given, str):
        remarks["calls of tools given as text are read as JSON"] = None
        given = _loads(given)
    if is_call and not given:
        raise ValueError("the call of a tool is empty")
    calls = [given] if isinstance(given, Mapping) else given or []
    if not isinstance(calls, list):
        raise ValueError(f"the calls of tools are {type(given).__name__}, not a list")
    return [_call(_loads(call) if isinstance(call, str) else call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    """{id, type, function: {name, arguments}} of such a call, or of {name, arguments}."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"the call of a tool has no name: {visible(repr(call), 40)}")
    arguments: Any = next((function[key] for key in ARGUMENT_KEYS if key in function), {})
    outer = {
        key: value for key, value in call.items() if key not in ("id", "type", "name", "function", *ARGUMENT_KEYS)
    }
    identity = {"id": call["id"]} if "id" in call else {}
    written = {"name": function["name"], "arguments": arguments}
    return {**identity, "type": call.get("type", "function"), **outer, "function": written}


def definitions(value: Any) -> list[Any] | None:
    """The definitions in a column, each as {type: function, function: {name, …}}; None if it holds something else."""
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list):
        return None
    try:
        found = [_loads(item) if isinstance(item, str) else item for item in items]
    except ValueError:
        return None
    if not all(isinstance(item, Mapping) and {"name", "type", "function"} & set(item) for item in found):
        return None
    return [_definition(item) for item in found]


def _definition(item: Mapping[str, Any]) -> Mapping[str, Any]:
    if "function" in item or "name" not in item:
        return item
    return {"type": "function", "function": {key: value for key, value in item.items() if key != "type"}}


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the call of a tool is not JSON: '{visible(text, 40)}'") from None
