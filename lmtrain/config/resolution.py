"""The one recipe of a run: flag > `--set` > environment > recipe > default."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtrain.config import shipped
from lmtrain.config.loading import (
    build,
    from_assignments,
    from_environment,
    in_sections,
    merge,
    objective_of,
    read_yaml,
)
from lmtrain.config.options import Leaf
from lmtrain.config.recipe import RECIPES, Recipe
from lmtrain.config.values import Document
from lmtrain.errors import UsageError, suggestion


def load_recipe(recipe: Recipe | str | Path | Mapping[str, Any], **overrides: Any) -> Recipe:
    """The recipe of a shipped name, a file, a document or a Recipe, with `overrides` named as flags are (`max_steps=10`).

    Overrides win over the environment (`LMTRAIN_*`), which wins over the recipe. Raises UsageError, InputError.
    """
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        document, where = recipe.model_dump(mode="json", exclude_unset=True), "the recipe"
    elif isinstance(recipe, Mapping):
        document, where = dict(recipe), "the recipe"
    else:
        path = shipped.find(str(recipe))
        document, where = read_yaml(path), str(path)
    recipe_class = RECIPES[objective_of(document, where)]
    given = in_sections(dict(overrides), recipe_class, "the arguments")
    document = in_sections(document, recipe_class, where)
    return build(recipe_class, merge(document, from_environment(recipe_class), given), where)


def resolve_recipe(recipe_class: type[Recipe], config: str | None, assignments: list[str], flags: Document) -> Recipe:
    """The recipe of a command: flag > `--set` > environment > recipe > default. Raises UsageError, InputError."""
    where, document = "the command line", Document()
    if config is not None:
        path = shipped.find(config)
        where, document = str(path), read_yaml(path)
        objective = objective_of(document, where)
        if RECIPES[objective] is not recipe_class:
            raise UsageError(f"{where}: a recipe for {objective}; use lmtrain {objective} or lmtrain run")
        document = in_sections(document, recipe_class, where)
    merged = merge(document, from_environment(recipe_class), from_assignments(assignments, recipe_class), flags)
    return build(recipe_class, merged, where)


def keywords_in_sections(options: Mapping[str, Any], known: tuple[Leaf, ...]) -> Document:
    """Keyword arguments -> sections, as typed flags are. Raises UsageError for an option that is not known."""
    document = Document()
    names = {name: leaf for leaf in known for name in (leaf.flag, *leaf.aliases)}
    if "assert" in names:  # a keyword of Python; the short form of recipes
        names["gates"] = names["assert"]
    for name, value in options.items():
        if value is None:
            continue
        if name not in names:
            raise UsageError(f"{name}: no such option{suggestion(name, names)}")
        leaf = names[name]
        document.setdefault(leaf.section, {})[leaf.name] = value
    return document
