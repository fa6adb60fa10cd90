"""The grammar of `--assert`."""

import math
import operator
import re
from collections.abc import Callable, Collection

from lmtrain.errors import suggestion

GRAMMAR = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
"""NAME OPERATOR NUMBER, and nothing else."""


OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def parse_assertions(expressions: list[str]) -> list[str]:
    """Return the expressions unchanged. Raises ValueError if one is not a comparison with a finite number."""
    for expression in expressions:
        match = GRAMMAR.fullmatch(expression)
        if not match or not math.isfinite(float(match[3])):
            raise ValueError("write it as NAME<NUMBER (or <=, >, >=, ==, !=), e.g. perplexity<25")
    return expressions


def name_of(expression: str) -> str:
    """The metric or the figure of an expression that is parsed already."""
    match = GRAMMAR.fullmatch(expression)
    assert match, "parsed before"
    return match[1].removeprefix("metrics.")


def holds(expression: str, value: float) -> bool:
    """Whether a value meets an expression that is parsed already."""
    match = GRAMMAR.fullmatch(expression)
    assert match, "parsed before"
    return bool(OPERATORS[match[2]](value, float(match[3])))


def check_assertions(expressions: list[str], known: Collection[str] | None, evaluates: bool) -> None:
    """Raise ValueError for a metric that the evaluation does not compute; with `known` None, any name is accepted.

    A name with a dot, such as train.last_loss, is the path of a figure in the results, which `check_figures` checks.
    """
    for expression in expressions:
        name = name_of(expression)
        if "." in name:
            continue
        if not evaluates:
            raise ValueError(f"--assert {expression}: needs evaluation data: --eval-data or --val-split")
        if known is not None and name not in known:
            raise ValueError(
                f"--assert {expression}: no metric {name!r}; these settings compute {', '.join(known)}"
                f"{suggestion(name, known)}"
            )


def check_figures(expressions: list[str], figures: Collection[str]) -> None:
    """Raise ValueError for the path of a figure that the results will not have; `figures` are those that they have."""
    for expression in expressions:
        name = name_of(expression)
        if "." in name and name not in figures:
            near = suggestion(name, figures) or f"; there are {', '.join(figures)}"
            raise ValueError(f"--assert {expression}: the results will have no {name!r}{near}")
