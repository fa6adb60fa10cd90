"""The tables of report.html about predicted labels: figures of each label, and which label was taken for which."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmtrain.runs.page import section, table
from lmtrain.runtime.console import format_number

MOST_LABELS = 20
"""Labels at most of a table of confusions, which grows with their square."""

NOT_GIVEN = ""
"""In a pair: the label is only predicted, or only true; of texts with any of several labels."""

Pairs = Counter[tuple[str, str]]
"""(true label, predicted label) -> how often."""


def label_sections(kind: str | None, records: Sequence[Mapping[str, Any]]) -> str:
    """The tables of each evaluation set, from the lines of its predictions.jsonl; empty of rows without labels."""
    if kind not in ("labelled", "tagged", "several"):
        return ""
    sets = dict.fromkeys(record.get("set", "") for record in records)
    return "".join(_tables(name, kind, [r for r in records if r.get("set", "") == name]) for name in sets)


def _tables(name: str, kind: str, records: Sequence[Mapping[str, Any]]) -> str:
    pairs: Pairs = Counter(pair for record in records for pair in _pairs(kind, record))
    labels = sorted({label for pair in pairs for label in pair} - {NOT_GIVEN})
    where = f" · {name}" if name else ""
    figures = section(
        f"Labels{where}",
        table(
            ["label", "rows", "precision", "recall", "F1"], [_figures(label, pairs) for label in labels], numbers=True
        ),
    )
    if kind == "several" or len(labels) > MOST_LABELS:
        return figures
    rows = [[true, *(f"{pairs[true, given]:,}" for given in labels)] for true in labels]
    return figures + section(
        f"Which label was taken for which{where}", table(["true ↓ predicted →", *labels], rows, numbers=True)
    )


def _pairs(kind: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(true, predicted) of a row; of several labels those that agree, and each of the others alone."""
    true, given = record["references"][0], record["prediction"]
    if kind == "labelled":
        yield true, given
    elif kind == "tagged":
        yield from zip(true, given, strict=True)
    else:
        for label in dict.fromkeys((*true, *given)):
            yield label if label in true else NOT_GIVEN, label if label in given else NOT_GIVEN


def _figures(label: str, pairs: Pairs) -> list[str]:
    """The row of a label: how often it is true; precision, recall and F1."""
    right = pairs[label, label]
    true = sum(count for (own, _), count in pairs.items() if own == label)
    given = sum(count for (_, own), count in pairs.items() if own == label)
    shares = (right / given if given else None, right / true if true else None, 2 * right / (true + given))
    return [label, f"{true:,}", *("–" if share is None else format_number(share) for share in shares)]
