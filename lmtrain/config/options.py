"""How an option is declared, and the options (leaves) that a recipe class has."""

import ast
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from lmtrain.config.values import parse_yaml


def option(default: Any = None, flag: str | None = None, aliases: tuple[str, ...] = (), **constraints: Any) -> Any:
    """A pydantic field that also is a flag.

    `flag` is its spelling on the command line where that is not the field's name; `aliases` are further names, good
    as flags and as recipe keys; `hidden=True` leaves it out of `--help`, "training" and "use" only out of that of the
    commands that train and that use a model; `use` is its help in the latter; `shortcuts` are flags that stand for
    one value, such as `--bf16` for `--precision bf16`.
    """
    extra = {name: constraints.pop(name) for name in ("hidden", "short", "shortcuts", "use") if name in constraints}
    return Field(default, json_schema_extra={"flag": flag, "aliases": list(aliases), **extra}, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # `--help` reads fields, not validators
    )


def describe_fields() -> None:
    """Make the string below a field its description.

    pydantic's use_attribute_docstrings does the same, but tokenises the source once for every class, which takes a
    quarter of the time of `--help`.
    """
    sections = [*_all_subclasses(Section)]
    texts = {
        (module, *found) for module in {section.__module__ for section in sections} for found in _texts_below(module)
    }
    described = {(module, owner, name): text for module, owner, name, text in texts}
    for section in sections:
        for name, field in section.model_fields.items():
            places = ((owner.__module__, owner.__name__, name) for owner in section.__mro__)
            field.description = next((described[place] for place in places if place in described), None)


def _texts_below(module: str) -> Iterator[tuple[str, str, str]]:
    """(class, field, the string below it) of a module's classes."""
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    for definition in ast.parse(source).body:
        if isinstance(definition, ast.ClassDef):
            for field, text in pairwise(definition.body):
                if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                    continue
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    yield definition.name, field.target.id, str(text.value.value)


def _all_subclasses(root: type[Section]) -> Iterator[type[Section]]:
    for child in root.__subclasses__():
        yield child
        yield from _all_subclasses(child)


SECTIONS = ("model", "data", "generate", "probe", "train", "eval", "gates", "run")


@dataclass(frozen=True)
class Leaf:
    section: str
    name: str
    field: FieldInfo

    @property
    def extra(self) -> Mapping[str, Any]:
        return typing.cast(Mapping[str, Any], self.field.json_schema_extra or {})

    @property
    def flag(self) -> str:
        """Its spelling on the command line, with underscores and without the leading dashes."""
        return self.extra.get("flag") or self.name

    @property
    def aliases(self) -> list[str]:
        return [alias for alias in self.extra["aliases"] if alias != self.flag]

    def read(self, text: str) -> Any:
        """A value written outside of a recipe: YAML, but for a field of text the text as it stands."""
        value = parse_yaml(text)
        several = isinstance(value, list) and all(isinstance(item, str) for item in value)
        is_list = self.field.annotation == list[str]
        plain = self.field.annotation in (str, str | None) or (is_list and not several)
        return text if plain else value

    @property
    def default(self) -> Any:
        return None if self.field.is_required() else self.field.default


@cache
def leaves(recipe_class: type[Section]) -> tuple[Leaf, ...]:
    sections = {name: field.annotation for name, field in recipe_class.model_fields.items() if name != "objective"}
    return tuple(
        Leaf(section, name, field)
        for section, section_class in sections.items()
        for name, field in section_class.model_fields.items()
    )


def names_of(leaf: Leaf) -> Iterator[str]:
    yield from (leaf.flag, leaf.name, *leaf.extra["aliases"])


ONLY_TYPED = {("model", "trust_remote_code"), ("model", "allow_pickle")}
"""What lets somebody else's code run."""
