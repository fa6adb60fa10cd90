"""The recipes that are shipped with lmtrain: all files of one folder."""

from pathlib import Path

from lmtrain.errors import InputError, UsageError, suggestion

PACKAGE = Path(__file__).parents[1]
# A wheel holds the folder inside the package, a checkout beside it.
FOLDER = next((f for f in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if f.is_dir()), PACKAGE / "recipes")


def shipped() -> list[Path]:
    """The files of all shipped recipes."""
    return sorted(FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe, given its path or the name of a shipped one. Raises UsageError for an unknown name."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the recipe file in it, e.g. {path / 'recipe.yaml'}")
    names = {recipe.stem: recipe for recipe in shipped()}
    if name.removesuffix(".yaml") in names:
        return names[name.removesuffix(".yaml")]
    raise UsageError(
        f"no recipe {name!r}: neither a file nor a shipped recipe{suggestion(name, names) or '.'} "
        f"Shipped recipes: {', '.join(names)}"
    )


def headline(path: Path) -> str:
    """The first line of a recipe: what it trains, and the expected result."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
