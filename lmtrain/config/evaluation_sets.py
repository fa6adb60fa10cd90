"""Named evaluation sets: `--eval-data dev=a.jsonl --eval-data test-ko=b.jsonl`."""

import re
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path

NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")

TAKEN = ("against", "data", "environment", "eval", "generation", "initial_metrics", "metrics", "train")
"""Names that stand for something else in front of a dot, in --assert."""


def name_and_source(value: str) -> tuple[str, str]:
    """The name of the set and where its rows are: `dev=a.jsonl` -> (dev, a.jsonl); without a name the first is empty.

    The path of a file that exists is never taken apart, e.g. lang=ko/part-0.parquet.
    """
    match, path = NAMED.fullmatch(value), re.sub(r"#\d+$", "", value)
    places = (value, path, path.rpartition("@")[0] or path)
    if not match or any(Path(place).exists() for place in places) or (has_magic(path) and any(Path().glob(path))):
        return "", value
    return match[1], match[2]


def source_of(value: str) -> str:
    """Where the rows are that a value of `--eval-data` names."""
    return name_and_source(value)[1]


def set_names(values: Iterable[str]) -> list[str]:
    """The names of the sets in their order; empty if none has a name. Raises ValueError if only some have one."""
    found = {value: name_and_source(value)[0] for value in values}
    names = [*dict.fromkeys(found.values())]
    if names in ([], [""]):
        return []
    if unnamed := [value for value, name in found.items() if not name]:
        raise ValueError(f"--eval-data {unnamed[0]}: give every evaluation set a name, NAME={unnamed[0]}, or none")
    if taken := [name for name in names if name in TAKEN]:
        raise ValueError(f"--eval-data {taken[0]}=…: {taken[0]} is a part of the results; choose another name")
    return names
