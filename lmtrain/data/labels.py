"""Labelled rows: texts or pairs of texts with a label, several or a number, sentences of tagged words, questions on a text."""

import re
from collections.abc import Iterable
from typing import Any

from lmtrain.config.heads import HEADS
from lmtrain.config.labelled_data import PAIR_SEPARATOR

NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)

LABELLED = tuple(HEADS)
"""The kinds of rows that have labels."""

Label = str | list[str] | float
"""Of a text its label, its labels or its number; of a sentence a tag per word."""

Labels = list[list[Any]]
"""The labels of each row: one of a text, or all of its labels, or its number; one per word of a tagged sentence."""

NUMBER_LABEL = "number"
"""What stands for the labels of texts that have a number."""

ANSWER_LABELS, NO_ANSWER = ("start", "end"), "no answer"
"""What stands for the labels of questions: the two ends of an answer and, where some have none, that there is none."""


def plain_text(content: str | list[str]) -> str:
    """The text of a labelled row, both parts of a pair, or its words."""
    return content.replace(PAIR_SEPARATOR, " ") if isinstance(content, str) else " ".join(content)


def labels_of_row(label: Label) -> list[Any]:
    """One label or number, all labels of a text, or a tag per word."""
    return label if isinstance(label, list) else [label]


def distinct_labels(kind: str, rows: Iterable[Any]) -> list[str]:
    """The labels that a model of these rows chooses from, in the order of their class numbers."""
    if kind == "number":
        return [NUMBER_LABEL]
    if kind == "question":
        return [*ANSWER_LABELS, *([NO_ANSWER] if any(not answers for _, answers in rows) else [])]
    return sorted_labels(label for _, own in rows for label in labels_of_row(own))


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The distinct labels in the order of their class numbers: numbers by value, otherwise alphabetically."""
    found = set(labels)
    return (
        sorted(found, key=lambda label: (float(label), label)) if all(map(NUMBER.fullmatch, found)) else sorted(found)
    )
