"""The labels of the rows, one per text or one tag per word, and the baseline that predicts them without a model."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain

from lmtrain.config.assertions import check_assertions
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data.corpus import Splits, check_leaks, read
from lmtrain.data.labels import Labels
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError
from lmtrain.evaluation.entities import OUTSIDE

ENTITY_METRICS = ("accuracy", "entity_precision", "entity_recall", "entity_f1")
LABEL_METRICS = ("accuracy", "macro_f1")


def read_splits(data: LabelledData, seed: int, assertions: list[str]) -> Splits:
    """The training and evaluation rows.

    Raises InputError for data that cannot be used, UsageError for a gate on a metric that such data do not have.
    """
    splits = check_leaks(*read(data, seed), data.on_leak)
    names = ENTITY_METRICS if has_entity_tags(splits.train) else LABEL_METRICS
    try:
        check_assertions(assertions, names, evaluates=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return splits


def labels_of(rows: Rows) -> Labels:
    return [list(labels) if rows.kind == "tagged" else [labels] for _, labels in rows.values]


def classes_of(rows: Rows) -> list[str]:
    """The distinct labels, sorted. Raises InputError if there is only one."""
    found = sorted(set(chain.from_iterable(labels_of(rows))))
    if len(found) < 2:
        raise InputError(f"{rows.tables[0].name}: all rows have one label, '{found[0]}'; a probe needs at least two")
    return found


def has_entity_tags(rows: Rows) -> bool:
    """Whether the labels are tags of entities, that is whether some word is tagged O. Raises InputError as classes_of."""
    return OUTSIDE in classes_of(rows) and rows.kind == "tagged"


def most_frequent(labels: Iterable[str]) -> str:
    """The most frequent label; of several, the first in alphabetical order."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def baseline(train: Rows, held_out: Rows) -> tuple[str, Labels]:
    """(description, predictions for `held_out`) of a baseline without a model, which any encoder should beat.

    It predicts the most frequent training label of texts. Of words it predicts the most frequent training tag of the
    same word, or of all words if the word does not occur in training.
    """
    default = most_frequent(chain.from_iterable(labels_of(train)))
    if train.kind != "tagged":
        return f"always '{default}'", [[default]] * len(held_out.values)
    tags_of: dict[str, list[str]] = defaultdict(list)
    for words, tags in train.values:
        for word, tag in zip(words, tags, strict=True):
            tags_of[word].append(tag)
    tag_of = {word: most_frequent(tags) for word, tags in tags_of.items()}
    predictions = [[tag_of.get(word, default) for word in words] for words, _ in held_out.values]
    return "each word's commonest tag in training", predictions
