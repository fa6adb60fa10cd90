"""TODO."""

from collections.abc import Iterator
from itertools import islice

from lmtrain.data.columns import Record
from lmtrain.data.sources import Table
from lmtrain.errors import InputError, visible


def sentences(table: Table) -> Iterator[tuple[int, Record]]:
    """(line, words and tags) of each sentence of a text file in CoNLL's format.

    A word a line, its tag in the last column; blank lines part the sentences. Raises InputError, with the line, for
    a word without a tag.
    """
    return islice(_sentences(table), table.limit)


def _sentences(table: Table) -> Iterator[tuple[int, Record]]:
    words: list[str] = []
    tags: list[str] = []
    start = 1
    for number, record in table.read():
        line = record["text"]
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                yield start, {"tokens": words, "tags": tags}
            words, tags = [], []
            continue
        # With tabs between the columns a word may hold other white space.
        columns = line.strip("\r\n").split("\t") if "\t" in line.strip() else line.split()
        if len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            raise InputError(f"{table.place(number)}: '{visible(line.strip())}' is a word without a tag; in CoNLL's "
                             "format every line is a word and its tag, and a blank line ends a sentence")  # fmt: skip
        start = start if words else number
        words.append(columns[0].strip())
        tags.append(columns[-1].strip())
    if words:
        yield start, {"tokens": words, "tags": tags}
