"""Words and their tags: sentences in CoNLL's format, the entities that tags mark, and what is counted of them.

An entity is what the program of the CoNLL-2000 and CoNLL-2003 shared tasks, `conlleval`, takes for one, so that
precision, recall and F1 are those that it prints: found is an entity whose first word, last word and type are right.
"""

from collections.abc import Iterable
from typing import NamedTuple

OUTSIDE = "O"
PLACES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
"""First letter of a tag -> where in its entity a word stands: begin, inside, end, single; BILOU says L and U."""


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
