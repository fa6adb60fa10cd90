"""Values as people write them: `1%`, `30m`, `a=1,b=2`, YAML."""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lmtrain.errors import UsageError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

Document = dict[str, Any]
"""A mapping as YAML or JSON holds it."""


def as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def names(value: object) -> object:
    """`"q_proj,v_proj"`, or a list of such strings -> ["q_proj", "v_proj"]."""
    if not isinstance(value, str | list):
        return value
    parts = [value] if isinstance(value, str) else value
    return [name.strip() for part in parts for name in str(part).split(",") if name.strip()]


def columns(value: object) -> object:
    """`"source,,target"`, or a list of such strings -> ["source", "", "target"]; no name may occur twice."""
    if not isinstance(value, str | list):
        return value
    parts = [value] if isinstance(value, str) else value
    found = [name.strip() for part in parts for name in str(part).split(",")]
    if twice := [name for name in found if name and found.count(name) > 1]:
        raise ValueError(f"'{twice[0]}' occurs twice")
    return found


def key_values(value: object) -> object:
    """`"n_layer=2,hidden_size=64"` -> `{"n_layer": 2, "hidden_size": 64}`, with values read as YAML.

    In a list of such strings later ones override earlier ones.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return {name: number for part in value for name, number in _parse_pairs(part).items()}
    return _parse_pairs(value) if isinstance(value, str) else value


def _parse_pairs(text: str) -> Document:
    pairs = [part.partition("=") for part in split_outside_brackets(text) if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError("write it as name=value,name=value")
    return {name.strip(): parse_yaml(value) for name, _, value in pairs}


def split_outside_brackets(text: str) -> list[str]:
    """Split at commas, except inside a list such as `[0, 2]`."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def numbers(value: object) -> object:
    """`"3,1"` -> [3, 1]."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("write it as 3,1") from None


def fraction(value: object) -> object:
    """`"1%"` or `"0.01"` -> 0.01. Raises ValueError for a bare number of 1 or more, which was meant in percent."""
    is_percent = isinstance(value, str) and value.endswith("%")
    try:
        number = float(value.removesuffix("%")) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("write it as 1% or 0.01") from None
    if not isinstance(number, int | float):
        return number
    if number >= 1 and not is_percent:
        raise ValueError(f"write {number:g}% for a percentage, or a share below 1 such as 0.01")
    return number / 100 if is_percent else number


def as_percent(share: float) -> float | str:
    """A share as `fraction` reads it."""
    return share if share < 1 else f"{100 * share:.15g}%"


def parse_size(text: str, flag: str) -> int:
    """`24GB`, `512MiB` or a number of bytes -> bytes. Raises UsageError."""
    units = {
        "": 1,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "tb": 1e12,
        "kib": 1 << 10,
        "mib": 1 << 20,
        "gib": 1 << 30,
        "tib": 1 << 40,
    }
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in units or not float(match[1]):
        raise UsageError(f"{flag} {text}: write it as 24GB or 512MiB")
    return int(float(match[1]) * units[match[2]])


def duration(value: object) -> object:
    """`"90"`, `"90s"`, `"30m"`, `"1.5h"` or `"2d"` -> seconds."""
    if not isinstance(value, str):
        return value
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, scale = (value[:-1], unit[value[-1]]) if value[-1:] in unit else (value, 1)
    try:
        return float(number) * scale
    except ValueError:
        raise ValueError("write it as 90s, 30m, 1.5h or 2d") from None


def flattened(document: Mapping[str, Any], without: Collection[str] = ()) -> Document:
    """`{"train": {"epochs": 3}}` -> `{"train.epochs": 3}`, `without` some of its sections. Lists stay as they are."""
    flat: Document = {}
    for name, value in document.items():
        if name in without:
            continue
        inner = flattened(value) if isinstance(value, dict) else None
        flat |= {f"{name}.{key}": part for key, part in inner.items()} if inner is not None else {name: value}
    return flat


Strings = Annotated[list[str], BeforeValidator(as_list)]
Columns = Annotated[list[str], BeforeValidator(columns)]

Every = Annotated[int, Field(gt=0)] | Literal["epoch"]
Length = Annotated[int, Field(ge=2, le=10_000_000)]


def yaml_format() -> "YAML":
    """Reads and writes YAML 1.2, without tags that create Python objects."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)


def parse_yaml(text: str) -> Any:
    """One YAML 1.2 value: `5e-5` is a number, `no` is a string. Text that is not YAML is returned as it is."""
    from ruamel.yaml.error import YAMLError

    try:
        return yaml_format().load(text)
    except YAMLError:
        return text
