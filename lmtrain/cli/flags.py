"""Recipe class -> Typer options. The declarations are in recipe.py; nothing is declared here."""

import types
import typing
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal

import typer
from pydantic import BeforeValidator

from lmtrain.config.options import Leaf, leaves
from lmtrain.config.recipe import DECLARED
from lmtrain.config.values import Document
from lmtrain.errors import UsageError

PANELS = {
    "model": "Model",
    "data": "Data",
    "train": "Training",
    "generate": "Generation",
    "probe": "Probe",
    "eval": "Evaluation",
    "gates": "Gates",
    "run": "Run",
}


def canonical(token: str) -> str:
    """The first spelling of a flag: `_` becomes `-`, an alias its flag. `token` has no leading dashes."""
    token = token.replace("_", "-")
    return _ALIASES.get(token, token)


_ALIASES = {
    alias.replace("_", "-"): leaf.flag.replace("_", "-")
    for section_class in DECLARED
    for leaf in leaves(section_class)
    for alias in leaf.aliases
}


def with_flags(command: Callable[..., None], options: Iterable[Leaf], trains: bool) -> Callable[..., None]:
    """Give `command`, which ends in `**flags`, one option for each leaf; `trains` selects its help text."""
    own = [p for p in Signature.from_callable(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    flags = [parameter for leaf in options for parameter in _parameters(leaf, trains)]
    first, last = [p for p in own if p.name == "ctx"], [p for p in own if p.name != "ctx"]
    keyword_only = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in [*first, *flags, *last]]
    command.__signature__ = Signature(keyword_only)  # type: ignore[attr-defined]
    return command


def _parameters(leaf: Leaf, trains: bool) -> list[Parameter]:
    spelling = "--" + leaf.flag.replace("_", "-")
    hidden = leaf.extra.get("hidden") in (True, "training" if trains else "use")
    text = _help(leaf, leaf.help(trains))
    panel = PANELS["run" if leaf.section == "train" and not trains else leaf.section]

    def parameter(
        names: list[str], annotation: Any, metavar: str, hidden: bool, shortcut: str | None = None
    ) -> Parameter:
        option = typer.Option(
            *names, help=text, rich_help_panel=panel, hidden=hidden, metavar=metavar, show_default=False
        )
        name = f"{leaf.section}__{leaf.name}" + (f"__{shortcut}" if shortcut else "")
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option])

    metavar, annotation = _type_of(leaf)
    if annotation is bool and leaf.default is not False:
        # What is on by default is shown as the flag that turns it off; the other spelling is accepted.
        off = parameter([f"--no-{spelling[2:]}"], bool, metavar, hidden, shortcut="off")
        return [parameter([spelling], bool, metavar, hidden=True), off]
    short = [f"-{leaf.extra['short']}"] if "short" in leaf.extra else []
    shortcuts = [
        parameter([f"--{flag}"], bool, "", hidden=True, shortcut=value)
        for flag, value in leaf.extra.get("shortcuts", {}).items()
    ]
    return [parameter([spelling, *short], annotation, metavar, hidden), *shortcuts]


def _help(leaf: Leaf, text: str) -> str:
    if choices := _choices(leaf):
        text = f"{text} ({', '.join(choices)})"
    shown = leaf.default not in (None, False, True, "", [], {})
    default = ", ".join(leaf.default) if isinstance(leaf.default, list) else leaf.default
    # Rich would read [org] as a style.
    return (f"{text} [{default}]" if shown else text).replace("[", "\\[")


def _bare(annotation: Any) -> Any:
    """The type without None and pydantic's annotations; str if a pydantic validator parses the text."""
    members = [m for m in typing.get_args(annotation) if m is not types.NoneType]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and len(members) == 1:
        annotation = members[0]
    if typing.get_origin(annotation) is Annotated:
        base, *marks = typing.get_args(annotation)
        return base if base == list[str] or not any(isinstance(m, BeforeValidator) for m in marks) else str
    return annotation


def _choices(leaf: Leaf) -> tuple[str, ...]:
    bare = _bare(leaf.field.annotation)
    return typing.get_args(bare) if typing.get_origin(bare) is Literal else ()


def described(leaf: Leaf) -> str:
    """The kind of value that the flag takes, for people."""
    if choices := _choices(leaf):
        return ", ".join(choices)
    metavar, annotation = _type_of(leaf)
    if _bare(leaf.field.annotation) == dict[str, Any]:
        return "name=value,…, or a mapping"
    words = {bool: "yes or no", int: "whole number", float: "number", list[str]: "text, or a list"}
    return words.get(annotation, "text" if metavar == "TEXT" else metavar)


def _type_of(leaf: Leaf) -> tuple[str, Any]:
    """(metavar, type) on the command line; a type that Typer lacks is text, which pydantic parses."""
    bare = _bare(leaf.field.annotation)
    if bare == dict[str, Any]:
        return "TEXT", list[str]  # given several times, all of them count
    if leaf.field.metadata and any(isinstance(mark, BeforeValidator) for mark in leaf.field.metadata):
        bare = bare if bare == list[str] else str
    known = {bool: "", int: "N", float: "X"}
    return (known[bare], bare) if bare in known else ("TEXT", bare if bare == list[str] else str)


def typed(ctx: typer.Context, flags: dict[str, Any]) -> Document:
    """The flags given on the command line, by section."""
    document: Document = {}
    for parameter, value in flags.items():
        section, name, *shortcut = parameter.split("__")
        source = ctx.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE" and value not in (None, []):
            value = {"off": False}.get(*shortcut, *shortcut) if shortcut else value
            if document.setdefault(section, {}).get(name, value) != value:
                raise UsageError(f"{section}.{name}: given twice, as {document[section][name]} and as {value}")
            document[section][name] = value
    return document
