"""pyproject.toml declares what lmtrain imports, and nothing else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in project["dependencies"]}


def imported() -> dict[str, str]:
    """Top-level third-party name -> a file that imports it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "lmtrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - {"lmtrain"} - sys.stdlib_module_names:
                found.setdefault(name, str(path.relative_to(ROOT)))
    return found


def of_extras() -> set[str]:
    """The packages that an extra declares: they are imported only where a flag asks for them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for extra in extras.values() for requirement in extra}


def test_every_imported_package_is_declared():
    distributions = packages_distributions()
    undeclared = {
        name: path
        for name, path in imported().items()
        if not {normalized(one) for one in distributions.get(name, [name])} & (declared() | of_extras())
    }
    assert undeclared == {}


def test_every_declared_package_is_imported():
    distributions = packages_distributions()
    used = {normalized(one) for name in imported() for one in distributions.get(name, [name])}
    assert declared() - used == set()
