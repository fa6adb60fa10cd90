"""Values as people write them: `1%`, `30m`, `a=1,b=2`, YAML."""

import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

Document = dict[str, Any]
Built = typing.TypeVar("Built", bound=BaseModel)


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def names(value: Any) -> Any:
    """`"q_proj,v_proj"` -> ["q_proj", "v_proj"]; of a list each."""
    if not isinstance(value, str | list):
        return value
    parts = [value] if isinstance(value, str) else value
    return [name.strip() for part in parts for name in str(part).split(",") if name.strip()]


def key_values(value: Any) -> Any:
    """`"n_layer=2,hidden_size=64"` -> `{"n_layer": 2, "hidden_size": 64}`, values read as YAML; of several strings the later
    ones win.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return {name: number for part in value for name, number in key_values(part).items()}
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _split_outside_brackets(value) if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError("write it as name=value,name=value")
    return {name.strip(): parse_yaml(text) for name, _, text in pairs}


def _split_outside_brackets(text: str) -> list[str]:
    """Split at commas, but not at those of a list such as `[0, 2]`."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def numbers(value: Any) -> Any:
    """`"3,1"` -> [3, 1]."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("write it as 3,1") from None


def share(value: Any) -> Any:
    """`"1%"` or `"0.01"` -> 0.01."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise ValueError("write it as 1% or 0.01") from None


def duration(value: Any) -> Any:
    """`"90"`, `"90s"`, `"30m"`, `"1.5h"` or `"2d"` -> seconds."""
    if not isinstance(value, str):
        return value
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, scale = (value[:-1], unit[value[-1]]) if value[-1:] in unit else (value, 1)
    try:
        return float(number) * scale
    except ValueError:
        raise ValueError("write it as 90s, 30m, 1.5h or 2d") from None


Strings = Annotated[list[str], BeforeValidator(as_list)]

Every = Annotated[int, Field(gt=0)] | Literal["epoch"]
Length = Annotated[int, Field(ge=2, le=10_000_000)]


def parse_yaml(text: str) -> Any:
    """Read one YAML 1.2 value: `5e-5` is a number, `no` is a word. Not YAML at all: the text itself."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
