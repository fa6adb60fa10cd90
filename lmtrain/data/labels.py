"""Labelled rows: texts or pairs of texts with a label, sentences of words with a tag each."""

import re
from collections.abc import Iterable

from lmtrain.config.labelled_data import PAIR_SEPARATOR

NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)

LABELLED = ("labelled", "tagged")
"""The kinds of rows that have labels."""

Labels = list[list[str]]
"""The labels of each row: one of a text, one per word of a tagged sentence."""


def plain_text(content: str | list[str]) -> str:
    """The text of a labelled row, both parts of a pair, or its words."""
    return content.replace(PAIR_SEPARATOR, " ") if isinstance(content, str) else " ".join(content)


def labels_of_row(label: str | list[str]) -> list[str]:
    """One label, or a tag per word."""
    return [label] if isinstance(label, str) else label


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The distinct labels in the order of their class numbers: numbers by value, otherwise alphabetically."""
    found = set(labels)
    return (
        sorted(found, key=lambda label: (float(label), label)) if all(map(NUMBER.fullmatch, found)) else sorted(found)
    )
