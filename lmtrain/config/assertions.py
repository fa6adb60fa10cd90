"""The grammar of `--assert`."""

import re
from collections.abc import Collection

from lmtrain.errors import suggestion

GRAMMAR = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
"""NAME OPERATOR NUMBER, and nothing else."""


def parse_assertions(expressions: list[str]) -> list[str]:
    """Return the expressions unchanged. Raises ValueError if one is not a comparison."""
    for expression in expressions:
        if not GRAMMAR.fullmatch(expression):
            raise ValueError("write it as NAME<NUMBER (or <=, >, >=, ==, !=), e.g. perplexity<25")
    return expressions


def check_assertions(expressions: list[str], known: Collection[str] | None, evaluates: bool) -> None:
    """Raise ValueError for a metric that the evaluation does not compute; with `known` None, any name is accepted.

    A name with a dot, such as train.last_loss, is looked up in the results and not checked here.
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
            raise ValueError(
                f"--assert {expression}: no metric {name!r}; these settings compute {', '.join(known)}"
                f"{suggestion(name, known)}"
            )
