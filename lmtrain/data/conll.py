"""Tagged sentences from text files in the CoNLL format."""

from collections.abc import Iterator
from itertools import islice

from lmtrain.data.columns import Record
from lmtrain.data.sources import Table
from lmtrain.errors import InputError, visible


def sentences(table: Table) -> Iterator[tuple[int, Record]]:
    """Yield (number of the first line, words and tags) of each sentence of a text file in the CoNLL format.

    Each line holds a word, first, and its tag, last; blank lines separate sentences. Raises InputError for a word
    without a tag.
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
        # Where tabs separate the columns, a word may contain spaces.
        columns = line.strip("\r\n").split("\t") if "\t" in line.strip() else line.split()
        if len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            raise InputError(
                f"{table.location(number)}: '{visible(line.strip())}' is a word without a tag; in the CoNLL format "
                "every line is a word and its tag, and a blank line ends a sentence"
            )
        start = start if words else number
        words.append(columns[0].strip())
        tags.append(columns[-1].strip())
    if words:
        yield start, {"tokens": words, "tags": tags}
