"""JSON documents that hold the splits of a data set: {"train": [rows], "validation": [rows]}."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lmtrain.data import splits
from lmtrain.data.columns import BadRow, Entry, Record
from lmtrain.data.readers.json_files import as_row


def rows_of_split(
    read: Callable[[], Iterator[tuple[int, Entry]]],
    split: str,
    exact: bool,
    name: str,
    columns: list[str],
    counts: Counter[str],
) -> Iterator[tuple[int, Entry]]:
    """The rows of `read`; of a document that holds splits, those of one (see splits.choose), which `counts` notes.

    Raises InputError for a split that is not there.
    """
    for number, entry in read():
        if isinstance(entry, BadRow) or not (names := _split_names(entry)):
            yield number, entry
            continue
        chosen = splits.choose(names, split, exact, name)
        for note in splits.note(names, chosen, split, name):
            counts[note.removeprefix(f"{name}: ")] += 1
        for row, value in enumerate(entry[chosen], 1):
            yield row, as_row(value, columns)


def _split_names(entry: Record) -> list[str]:
    """The names of the splits that an object holds; empty for any other object."""
    held = all(isinstance(rows, list) and splits.of_file(Path(name)) for name, rows in entry.items())
    return [*entry] if held and len(entry) > 1 else []
