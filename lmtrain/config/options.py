"""How an option is declared, and the list of options of a recipe class."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from lmtrain.config.values import parse_yaml

EXTRAS = ("hidden", "short", "shortcuts", "use", "off")


def option(default: Any = None, flag: str | None = None, aliases: tuple[str, ...] = (), **constraints: Any) -> Any:
    """A pydantic field that is also a command-line flag; the string below the field is its help.

    `flag` is the flag's name if it differs from the field's; `aliases` are further names, accepted as flags and as recipe
    keys. `constraints` are arguments of `pydantic.Field`, and any of these:

    - `hidden`: True hides the flag from `--help`; "training" and "use" hide it from the help of the commands that train
      a model, or that use one.
    - `short`: the one-letter flag.
    - `shortcuts`: flags that stand for one value, e.g. `--bf16` for `--precision bf16`.
    - `use`: the help in the commands that use a model.
    - `off`: the help of `--no-FLAG`, for a flag that is on by default.
    """
    extra = {name: constraints.pop(name) for name in EXTRAS if name in constraints}
    return Field(default, json_schema_extra={"flag": flag, "aliases": list(aliases), **extra}, **constraints)


class Section(BaseModel):
    """A section of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # `--help` needs the fields, not the validators
    )


SECTIONS = ("model", "data", "generate", "probe", "train", "eval", "gates", "run")


@dataclass(frozen=True)
class Leaf:
    """One option: a field of one section of a recipe class."""

    section: str
    name: str
    field: FieldInfo
    declared_in: type[Section]

    @property
    def extra(self) -> Mapping[str, Any]:
        return extra_of(self.field)

    @property
    def flag(self) -> str:
        """The name of the flag, with underscores and without the leading dashes."""
        return self.extra.get("flag") or self.name

    @property
    def aliases(self) -> list[str]:
        return [alias for alias in self.extra["aliases"] if alias != self.flag]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the option has within its section."""
        return (self.flag, self.name, *self.extra["aliases"])

    @property
    def description(self) -> str:
        """The string below the field, in the class that declares it last."""
        owners = (owner for owner in self.declared_in.__mro__ if issubclass(owner, Section))
        texts = (_docstrings(owner.__module__).get((owner.__name__, self.name)) for owner in owners)
        return next((text for text in texts if text), "")

    def help(self, trains: bool) -> str:
        """The text of `--help`, in the commands that train a model or in those that use one."""
        return self.extra.get("off") or (not trains and self.extra.get("use")) or self.description

    def read(self, text: str) -> Any:
        """Parse a value from `--set` or the environment: as YAML, except that a text option takes it as it is."""
        value = parse_yaml(text)
        several = isinstance(value, list) and all(isinstance(item, str) for item in value)
        is_list = self.field.annotation == list[str]
        plain = self.field.annotation in (str, str | None) or (is_list and not several)
        return text if plain else value

    @property
    def default(self) -> Any:
        return None if self.field.is_required() else self.field.default


def extra_of(field: FieldInfo) -> Mapping[str, Any]:
    """What `option` stored beside pydantic's own attributes."""
    return cast(Mapping[str, Any], field.json_schema_extra or {})


@cache
def leaves(recipe_class: type[Section]) -> tuple[Leaf, ...]:
    """The options of a recipe class, in the order of their declaration."""
    sections = {name: field.annotation for name, field in recipe_class.model_fields.items() if name != "objective"}
    return tuple(
        Leaf(section, name, field, section_class)
        for section, section_class in sections.items()
        if isinstance(section_class, type) and issubclass(section_class, Section)
        for name, field in section_class.model_fields.items()
    )


@cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the string below the field, for the classes of a module.

    pydantic's `use_attribute_docstrings` reads the same strings, but tokenizes the source once per class at import.
    """
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {(node.name, field): text for node in classes for field, text in _fields_with_docstring(node)}


def _fields_with_docstring(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                yield name, docstring


ONLY_TYPED = {("model", "trust_remote_code"), ("model", "allow_pickle")}
"""Options that may run code of others, so they are accepted on the command line only."""
