"""Entity spans in the tags of a sentence (BIO, BIOES, BILOU or IO).

Spans are those of `conlleval`, the scorer of the CoNLL-2000 and CoNLL-2003 shared tasks, so precision, recall and F1
equal what it prints: a predicted entity is correct if its first word, last word and type are.
"""

from collections.abc import Iterable
from typing import NamedTuple

OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
"""Prefix of a tag -> its BIOES form: begin, inside, end or single; BILOU writes L and U for E and S."""


class Entity(NamedTuple):
    """Words `start` up to `end` (exclusive) of a sentence."""

    start: int
    end: int
    type: str


def parse_tag(tag: str) -> tuple[str, str]:
    """(prefix, type): `B-LOC` -> ("B", "LOC"), `O` -> ("O", ""), and `LOC`, which has no prefix, -> ("I", "LOC")."""
    letter, dash, type_ = tag.partition("-")
    if letter in PREFIXES and (dash or not type_):
        return PREFIXES[letter], type_
    return (OUTSIDE, "") if tag == OUTSIDE else ("I", tag)


def entities(tags: Iterable[str]) -> set[Entity]:
    """The entities of a tagged sentence, as conlleval reads them.

    An entity starts at B or S, and at I or E after O, E, S or another type. It ends before the next entity or O.
    """
    found: set[Entity] = set()
    start, before, current = 0, OUTSIDE, ""
    for position, (prefix, type_) in enumerate([*map(parse_tag, tags), (OUTSIDE, "")]):
        begins = prefix in "BS" or before in "OES" or type_ != current
        if before != OUTSIDE and (begins or prefix == OUTSIDE):
            found.add(Entity(start, position, current))
        if prefix != OUTSIDE and begins:
            start = position
        before, current = prefix, type_
    return found


def count_matches(predicted: list[str], true: list[str]) -> tuple[int, int, int]:
    """(correct entities, predicted entities, true entities) of a sentence."""
    ours, theirs = entities(predicted), entities(true)
    return len(ours & theirs), len(ours), len(theirs)
