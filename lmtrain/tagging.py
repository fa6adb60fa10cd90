"""Words and their tags: sentences in CoNLL's format, the entities that tags mark, and what is counted of them.

An entity is what the program of the CoNLL-2000 and CoNLL-2003 shared tasks, `conlleval`, takes for one, so that
precision, recall and F1 are those that it prints: found is an entity whose first word, last word and type are right.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from lmtrain.columns import Record
from lmtrain.errors import InputError, visible
from lmtrain.tables import Table

OUTSIDE = "O"
PLACES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
"""First letter of a tag -> where in its entity a word stands: begin, inside, end, single; BILOU says L and U."""


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


# --- entities --------------------------------------------------------------------------------------------------------


class Entity(NamedTuple):
    """Its first word, the one behind its last, and its type."""

    start: int
    end: int
    type: str


def parsed(tag: str) -> tuple[str, str]:
    """(place, type): `B-LOC` -> ("B", "LOC"); `LOC`, of a scheme without places, -> ("I", "LOC"); `O` -> ("O", "")."""
    letter, dash, kind = tag.partition("-")
    if letter in PLACES and (dash or not kind):
        return PLACES[letter], kind
    return (OUTSIDE, "") if tag == OUTSIDE else ("I", tag)


def entities(tags: Iterable[str]) -> set[Entity]:
    """The entities that tags mark, in BIO, BIOES, BILOU or IO, as conlleval reads them.

    What is not well formed marks something too: an I- after O, after the end of an entity or after another type begins
    an entity, as does an E-; an entity also ends before whatever begins a new one, and before O.
    """
    found: set[Entity] = set()
    start, before, kind = 0, OUTSIDE, ""
    for position, (place, own) in enumerate([*map(parsed, tags), (OUTSIDE, "")]):
        begins = place in "BS" or before in "OES" or own != kind
        if before != OUTSIDE and (begins or place == OUTSIDE):
            found.add(Entity(start, position, kind))
        if place != OUTSIDE and begins:
            start = position
        before, kind = place, own
    return found


def agreement(predicted: list[str], true: list[str]) -> tuple[int, int, int]:
    """(entities in both, predicted ones, true ones) of a sentence."""
    ours, theirs = entities(predicted), entities(true)
    return len(ours & theirs), len(ours), len(theirs)
