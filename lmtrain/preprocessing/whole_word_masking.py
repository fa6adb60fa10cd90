"""Which words, or spans of words, are to be predicted: in expectation exactly the share of the tokens that is asked for.

A unit (a word, or a span of words that follow one another) is masked whole or not at all. The units of a text are laid
end to end in random order around a circle as long as the text, and a window as long as the share that is to be masked
falls on it anywhere: a unit is masked if its middle lies in the window. So every unit has the same chance, that share,
whatever its length, and what is masked of a text differs from the share by parts of the two units at the window's ends.

For spans the text is cut into units whose lengths in words follow SpanBERT's law (Joshi et al., TACL 2020). Every other
unit goes onto one circle, the rest onto a second one, and the window falls on one of the two (by their lengths): so two
spans never touch, which would make one longer one of them, and the lengths of what is masked follow the law as it is.
"""

from dataclasses import dataclass

import numpy as np

from lmtrain.preprocessing.hashed_random import uniform

LONGEST, STOP = 10, 0.2
LENGTHS = STOP * (1 - STOP) ** np.arange(LONGEST) / (1 - (1 - STOP) ** LONGEST)
"""The chances of spans of 1, 2, … words: geometric, cut off at the longest; 3.8 words on average."""

ORDER, LENGTH, SHIFT, TURN = range(3, 7)
"""Numbers of the draws; those before are of the single tokens, see collate.py."""


@dataclass(frozen=True)
class Units:
    """What is masked whole, text by text.

    Of each the text, where it begins and ends, how many of its tokens can be masked, and the circle it goes onto.
    """

    text: np.ndarray
    first: np.ndarray
    end: np.ndarray
    length: np.ndarray
    side: np.ndarray


def choose(
    starts: np.ndarray, free: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, share: float,
    key: tuple[int, ...], spans: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """([tokens] whether it is to be predicted, [tokens] of those where in the window its unit lies, from 0 to 1).

    `starts` [tokens]: whether a token begins a word; `free` [tokens]: whether it may be masked (an unknown piece in a word
    stays as it is); `lengths` and `numbers` [texts] of the texts that the tokens are of, one after another.
    """
    units = words(starts, free, lengths)
    if spans:
        units = joined(units, numbers, key)
    inside, place = _in_window(units, np.cumsum(lengths) - lengths, numbers, share, key)
    first, extent = units.first[inside], (units.end - units.first)[inside]
    tokens = np.repeat(first - (np.cumsum(extent) - extent), extent) + np.arange(extent.sum())
    chosen, where = np.zeros(len(starts), bool), np.zeros(len(starts))
    chosen[tokens], where[tokens] = True, np.repeat(place[inside], extent)
    return chosen & free, where


def words(starts: np.ndarray, free: np.ndarray, lengths: np.ndarray) -> Units:
    """The words of which something may be masked."""
    starts = starts.astype(bool)
    starts[np.cumsum(lengths) - lengths] = True
    first = np.flatnonzero(starts)
    end = np.append(first[1:], len(starts))
    length = np.add.reduceat(free.astype(np.int64), first)
    some = length > 0
    text = np.repeat(np.arange(len(lengths)), lengths)[first]
    return Units(text[some], first[some], end[some], length[some], np.zeros(int(some.sum()), np.int64))


def joined(words: Units, numbers: np.ndarray, key: tuple[int, ...]) -> Units:
    """Spans: every text cut from its first word on; what is never masked cuts as well."""
    counts = np.bincount(words.text, minlength=len(numbers))
    before = np.repeat(np.cumsum(counts) - counts, counts)  # words of the texts before
    within = np.arange(len(words.text)) - before
    drawn = uniform((*key, LENGTH), numbers[words.text], within)
    length = 1 + np.searchsorted(np.cumsum(LENGTHS)[:-1], drawn, side="right")
    until = np.cumsum(length) - length
    at = until - (until[before] if len(until) else until)  # where the n-th span of its text begins, in words
    begins = np.zeros(len(words.text), bool)
    begins[(before + at)[at < counts[words.text]]] = True
    begins[1:] |= words.first[1:] != words.end[:-1]
    begin = np.flatnonzero(begins)
    last = np.append(begin[1:], len(begins)) - 1
    text = words.text[begin]
    masked = np.cumsum(words.length)
    spans = np.bincount(text, minlength=len(numbers))
    number = np.arange(len(text)) - np.repeat(np.cumsum(spans) - spans, spans)
    length = np.diff(masked[last], prepend=0)
    return Units(text, words.first[begin], words.end[last], length, number % 2)


def _in_window(
    units: Units, begins: np.ndarray, numbers: np.ndarray, share: float, key: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """([units] whether it is in the window, [units] how far along it, from 0 to 1)."""
    circle = 2 * units.text + units.side
    random = uniform((*key, ORDER), numbers[units.text], units.first - begins[units.text])
    order = np.lexsort((random, circle))
    size = np.bincount(circle, weights=units.length, minlength=2 * len(numbers))
    middle = np.empty(len(order))
    middle[order] = (np.cumsum(units.length[order]) - units.length[order] / 2) - (np.cumsum(size) - size)[
        circle[order]
    ]
    pairs = size.reshape(-1, 2)
    window = share * pairs.sum(1)
    zeros = np.zeros_like(numbers)
    turn = uniform((*key, TURN), numbers, zeros) * pairs.sum(1) < pairs[:, 1]
    # A window that is longer than its circle goes on with the other one.
    filled = np.stack([np.where(turn, pairs[:, 1], 0), np.where(turn, 0, pairs[:, 0])], 1).reshape(-1)
    shift = uniform((*key, SHIFT), numbers, zeros)[units.text]
    place = filled[circle] + np.mod(middle - shift * size[circle], size[circle])
    return place < window[units.text], place / window[units.text]
