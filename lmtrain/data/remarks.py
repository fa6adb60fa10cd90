"""What is remarkable about files, told once for all the files that it is true of."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Remarks:
    """What there is to say about one file."""

    name: str
    fixed: tuple[str, ...] = ()
    """What its first lines show."""
    counts: Counter[str] = field(default_factory=Counter)
    """Sentence with `{count}` in it -> count. A reader starts them anew."""


def told(remarks: Iterable[Remarks]) -> list[str]:
    """One line for each sentence, e.g. `a.txt and 2 more: …`, with the counts of all files added up."""
    names: dict[str, list[str]] = {}
    totals: Counter[str] = Counter()
    for remark in remarks:
        for sentence in (*remark.fixed, *remark.counts):
            names.setdefault(sentence, []).append(remark.name)
            totals[sentence] += remark.counts[sentence]
    return [f"{_several(files)}: {_filled(sentence, totals[sentence])}" for sentence, files in names.items()]


def _several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1:,} more" if names[1:] else "")


def _filled(sentence: str, count: int) -> str:
    return sentence.replace("{count}", f"{count:,}")
