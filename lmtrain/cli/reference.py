"""The reference of every recipe key and the schema for editors, both made from the declarations in recipe.py.

`python -m lmtrain.cli.reference` writes docs/reference.md and recipes/schema.json.
"""

import json
import typing
from typing import Any

from lmtrain.cli.flags import described
from lmtrain.config.options import ONLY_TYPED, Leaf, leaves
from lmtrain.config.recipe import RECIPES
from lmtrain.config.shipped import FOLDER, PACKAGE
from lmtrain.config.values import Document

SCHEMA, REFERENCE = FOLDER / "schema.json", PACKAGE.parent / "docs" / "reference.md"


# --- for editors -----------------------------------------------------------------------------------------------------
def schema() -> Document:
    """A JSON schema (draft 2020-12) that every recipe fulfils, by its objective."""
    values: Document = {}
    by_objective = [
        {"if": {"properties": {"objective": {"const": objective}}}, "then": _schema_of(objective, values)}
        for objective in RECIPES
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of lmtrain",
        "type": "object",
        "required": ["objective"],
        "properties": {"objective": {"enum": list(RECIPES), "description": "What is learned."}},
        "allOf": by_objective,
        "$defs": values,
    }


def _schema_of(objective: str, values: Document) -> Document:
    """The schema of one objective's recipes; what their keys take is put under a name into `values`."""
    recipe_class = RECIPES[objective]
    own = [leaf for leaf in leaves(recipe_class) if (leaf.section, leaf.name) not in ONLY_TYPED]
    sections = {leaf.section: recipe_class.model_fields[leaf.section].annotation for leaf in own}
    schemas = {section: annotation.model_json_schema() for section, annotation in sections.items()}  # type: ignore[union-attr]
    properties: Document = {"objective": {}}
    inside: Document = {section: {} for section in sections}
    for leaf in own:
        value = _named(objective, leaf, _value(leaf, schemas[leaf.section]), values)
        inside[leaf.section] |= {name: value for name in (leaf.name, leaf.flag, *leaf.aliases)}
        properties |= {name: value for name in (leaf.flag, *leaf.aliases)}  # at the top, by the names of its flag
    for section, keys in inside.items():
        # `train` also takes whatever TrainingArguments do.
        whole = {"type": "object", "properties": keys, "additionalProperties": section == "train"}
        properties[section] = {"anyOf": [whole, properties[section]]} if section in properties else whole
    properties["gates"] = {"anyOf": [properties["gates"], {"type": ["array", "string"]}]}
    return {"properties": properties, "additionalProperties": False}


def _named(objective: str, leaf: Leaf, value: Document, values: Document) -> Document:
    """A reference to the value, which is shared by the objectives where it is the same."""
    name = f"{leaf.section}.{leaf.name}"
    if values.setdefault(name, value) != value:
        name = f"{objective}.{name}"
        values[name] = value
    return {"$ref": f"#/$defs/{name}"}


def _value(leaf: Leaf, schema_of_section: Document) -> Document:
    found = dict(schema_of_section["properties"][leaf.name])
    for ours in ("title", "default", *leaf.extra):
        found.pop(ours, None)
    # What is read from text as well (1%, 30m, name=value) may stand there as text.
    if _reads_text(leaf.field.annotation) or any(hasattr(mark, "func") for mark in leaf.field.metadata):
        found = {"anyOf": [found, {"type": "string"}]}
    return {"description": leaf.description, **found}


def _reads_text(annotation: Any) -> bool:
    """Whether somewhere in a type stands a validator of ours that comes before pydantic's own."""
    if typing.get_origin(annotation) is typing.Annotated:
        base, *marks = typing.get_args(annotation)
        return any(hasattr(mark, "func") for mark in marks) or _reads_text(base)
    return any(_reads_text(inner) for inner in typing.get_args(annotation) if not isinstance(inner, str))


# --- for people ------------------------------------------------------------------------------------------------------
def reference() -> str:
    """docs/reference.md."""
    found: dict[tuple[str, str], dict[str, Leaf]] = {}
    for objective, recipe_class in RECIPES.items():
        for leaf in leaves(recipe_class):
            found.setdefault((leaf.section, leaf.name), {})[objective] = leaf
    order = list(dict.fromkeys(section for section, _ in found))
    text = [INTRODUCTION]
    for section in order:
        text += ["", f"## {section}", "", "| key | flag | value | default | |", "|---|---|---|---|---|"]
        text += [_line(by_objective) for (own, _), by_objective in found.items() if own == section]
    return "\n".join(text) + "\n"


INTRODUCTION = """# Every key of a recipe

Made from the declarations by `python -m lmtrain.cli.reference`. A key stands in its section, or at the top by the name of its
flag. Every flag can also be given as `LMTRAIN_<FLAG>` in the environment; a flag wins over `--set`, that over the environment,
that over the recipe. `train` also takes every other field of transformers' `TrainingArguments`. Aliases stand in brackets.

For completion and checks in an editor: `"yaml.schemas": {"recipes/schema.json": "*.recipe.yaml"}` in VS Code."""


def _line(by_objective: dict[str, Leaf]) -> str:
    leaf = next(iter(by_objective.values()))
    helps = {objective: own.description for objective, own in by_objective.items()}
    help_text = " ".join(
        (
            f"*{', '.join(o for o in helps if helps[o] == text)}:* "
            if len(helps) < len(RECIPES) or len(set(helps.values())) > 1
            else ""
        )
        + text
        for text in dict.fromkeys(helps.values())
    )
    aliases = f" ({', '.join(leaf.aliases)})" if leaf.aliases else ""
    default = "" if leaf.default in (None, [], {}, "") else _plain(leaf.default)
    cells = [f"`{leaf.name}`{aliases}", f"`--{leaf.flag.replace('_', '-')}`", described(leaf), default, help_text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    SCHEMA.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    REFERENCE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
