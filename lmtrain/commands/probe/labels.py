"""The labels that rows bear, one a text or one a word; what can be said of them and by them without a model."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain

from lmtrain.commands.probe import entities
from lmtrain.config.data import LabelledData
from lmtrain.data.corpus import Splits, check_leaks, read
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError

Labels = list[list[str]]
"""Of each row its labels: one of a text, one a word of a sentence."""


def sides(data: LabelledData, seed: int, assertions: list[str]) -> Splits:
    """What to learn from and what to judge by.

    Raises InputError for data that cannot be used, UsageError for a gate on a figure that such data do not have.
    """
    found = check_leaks(*read(data, seed), data.on_leak)
    names = ENTITY_FIGURES if marks_entities(found.train) else LABEL_FIGURES
    try:
        assertions.check_assertions(assertions, names, evaluates=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found


ENTITY_FIGURES = ("accuracy", "entity_precision", "entity_recall", "entity_f1")
LABEL_FIGURES = ("accuracy", "macro_f1")


def of(rows: Rows) -> Labels:
    return [list(own) if rows.kind == "tagged" else [own] for _, own in rows.values]


def classes(rows: Rows) -> list[str]:
    """The labels that there are, sorted. Raises InputError where there is only one."""
    found = sorted(set(chain.from_iterable(of(rows))))
    if len(found) < 2:
        raise InputError(f"{rows.tables[0].name}: all rows have one label, '{found[0]}'; it takes two to tell apart")
    return found


def marks_entities(rows: Rows) -> bool:
    """Whether the labels are tags of entities: then some words are outside of any. Raises InputError as `classes`."""
    return entities.OUTSIDE in classes(rows) and rows.kind == "tagged"


def commonest(labels: Iterable[str]) -> str:
    """The most frequent label, of several the first in the alphabet."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def baseline(train: Rows, held_out: Rows) -> tuple[str, Labels]:
    """(a way to guess without a model, its guesses): what any encoder should be better than.

    A text has the commonest label of training; a word the tag that it mostly has in training, one that is not there the
    commonest tag.
    """
    default = commonest(chain.from_iterable(of(train)))
    if train.kind != "tagged":
        return f"always '{default}'", [[default]] * len(held_out.values)
    tags_of: dict[str, list[str]] = defaultdict(list)
    for words, tags in train.values:
        for word, tag in zip(words, tags, strict=True):
            tags_of[word].append(tag)
    known = {word: commonest(tags) for word, tags in tags_of.items()}
    return "each word's commonest tag in training", [
        [known.get(word, default) for word in w] for w, _ in held_out.values
    ]
