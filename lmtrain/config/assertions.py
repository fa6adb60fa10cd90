"""The grammar of `--assert`."""

import re
from collections.abc import Collection

from lmtrain.errors import suggestion

GRAMMAR = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
"""NAME OPERATOR NUMBER, and nothing else."""


def parse_assertions(expressions: list[str]) -> list[str]:
    """The expressions as they are. Raises ValueError for one that is not a comparison."""
    for expression in expressions:
        if not GRAMMAR.fullmatch(expression):
            raise ValueError("write it as NAME<NUMBER (or <=, >, >=, ==, !=), such as perplexity<25")
    return expressions


def check_assertions(expressions: list[str], known: Collection[str] | None, evaluates: bool) -> None:
    """Raise ValueError for a figure that there will not be; with `known` None only the results can tell.

    What has a dot in its name is looked up in the results, the others among the figures of an evaluation.
    """
    for expression in expressions:
        match = GRAMMAR.fullmatch(expression)
        assert match, "parsed before"
        name = match[1]
        if "." in name:
            continue
        if not evaluates:
            raise ValueError(f"--assert {expression}: needs evaluation data: --eval-data or --val-split")
        if known is not None and name not in known:
            raise ValueError(f"--assert {expression}: no figure {name!r}; with these settings there are "
                             f"{', '.join(known)}{suggestion(name, known)}")  # fmt: skip
