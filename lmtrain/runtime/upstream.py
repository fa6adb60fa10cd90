"""Whether the installed libraries still have what lmtrain relies on (upstream_names.py)."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from lmtrain.runtime.reliance import REST, Reliance
from lmtrain.runtime.upstream_names import RELIANCES


def differences() -> list[str]:
    """One sentence for each name that is gone or has other parameters: what changed, and what would happen."""
    return [
        f"{name} {change}: {reliance.broken}"
        for reliance in RELIANCES
        for name, change in _changes(reliance)
        if change
    ]


def _changes(reliance: Reliance) -> Iterator[tuple[str, str | None]]:
    for name, parameters in reliance.overridden.items():
        yield name, _change(name, parameters, overridden=True)
    for name, parameters in reliance.called.items():
        yield name, _change(name, parameters, overridden=False)
    for name in reliance.attributes:
        yield name, None if _exists(name) else "is gone"


def _change(name: str, parameters: str, overridden: bool) -> str | None:
    found = resolve(name)
    if found is None:
        return "is gone"
    known = [parameter for parameter in parameters.split(", ") if parameter not in ("", REST)]
    signature = {n: p for n, p in inspect.signature(found).parameters.items() if n != "self"}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [n for n, p in signature.items() if p.kind not in variable]
    if lost := [n for n in known if n not in named]:
        return f"no longer takes {lost[0]}"
    required = [n for n in named if signature[n].default is inspect.Parameter.empty]
    new = [n for n in (named if overridden else required) if n not in known]
    if new and REST not in parameters:
        return f"now also takes {new[0]}"
    if [n for n in named if n in known] != known:
        return "takes its parameters in another order"
    return None


def resolve(name: str) -> Any:
    """What a dotted name stands for; None where there is no such name, or no such library."""
    found: Any = None
    path = ""
    for part in name.split("."):
        path = f"{path}.{part}" if path else part
        if found is not None and hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(path)
        except ImportError:
            return None
    return found


def _exists(name: str) -> bool:
    if name.endswith("]"):
        mapping, _, key = name[:-1].partition("[")
        found = resolve(mapping)
        return found is not None and key in found
    owner, _, attribute = name.rpartition(".")
    found = resolve(owner)
    return found is not None and (hasattr(found, attribute) or attribute in instance_attributes(found))


@cache
def instance_attributes(owner: Any) -> frozenset[str]:
    """The names that instances of a class have, as far as the source of it and of its base classes shows."""
    return frozenset().union(*map(assigned, owner.__mro__[:-1])) if inspect.isclass(owner) else frozenset()


def assigned(owner: type) -> set[str]:
    """The names that a class declares, assigns to `self` or registers as a buffer, without those of its base classes."""
    found = {*inspect.get_annotations(owner)}
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # written in C or Rust
        return found
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.register_buffer":
            found |= {
                name.value for name in node.args[:1] if isinstance(name, ast.Constant) and isinstance(name.value, str)
            }
    return found
