"""Whole-word and span masking: the expected share of predicted tokens is exactly the requested one.

A unit (a word, or a span of consecutive words) is masked completely or not at all. The units of a text are placed in
random order on a circle whose circumference is the text's number of maskable tokens. A window covering the requested
share of the circle starts at a random position, and a unit is masked if its middle lies in the window. So every unit
is masked with the same probability whatever its length, and the masked share of a text is off by at most the parts of
the two units at the ends of the window.

For spans, each text is cut into units whose lengths in words follow SpanBERT's distribution (Joshi et al., TACL 2020).
Units alternate between two circles, and the window starts on one of them, chosen in proportion to their size. So two
masked spans are never adjacent, which would merge them into a longer one, and the lengths keep their distribution.
"""

from dataclasses import dataclass

import numpy as np

from lmtrain.preprocessing.hashed_random import uniform

MAX_WORDS, P = 10, 0.2
LENGTHS = P * (1 - P) ** np.arange(MAX_WORDS) / (1 - (1 - P) ** MAX_WORDS)
"""Probabilities of spans of 1, 2, … words: geometric, clipped at `MAX_WORDS`; the mean is 3.8 words."""

ORDER, LENGTH, SHIFT, CIRCLE = range(3, 7)
"""Numbers of the random draws; 0 to 2 are the draws per token (MaskedCollator)."""


@dataclass(frozen=True)
class Units:
    """Units that are masked completely or not at all, ordered by text; all arrays are [units]."""

    text: np.ndarray
    """Index of the text."""
    first: np.ndarray
    """First token, counted over all texts."""
    end: np.ndarray
    """The token after the last one."""
    length: np.ndarray
    """Number of maskable tokens."""
    circle: np.ndarray
    """0 or 1: which circle of its text the unit is on."""


def choose(
    starts: np.ndarray,
    maskable: np.ndarray,
    lengths: np.ndarray,
    numbers: np.ndarray,
    share: float,
    key: tuple[int, ...],
    spans: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """([tokens] bool, which are predicted; [tokens] float from 0 to 1, the position of their unit in the window).

    `starts` [tokens] bool: whether a token begins a word. `maskable` [tokens] bool: an unmaskable token inside a word
    (an unknown piece) is not predicted. `lengths` and `numbers` [texts]: of the concatenated texts. The random draws
    are a function of `key`, the text's number and the position. `spans`: mask spans of words instead of words.
    """
    units = _words(starts, maskable, lengths)
    if spans:
        units = _spans(units, numbers, key)
    inside, position = _in_window(units, np.cumsum(lengths) - lengths, numbers, share, key)
    first, extent = units.first[inside], (units.end - units.first)[inside]
    tokens = np.repeat(first - (np.cumsum(extent) - extent), extent) + np.arange(extent.sum())
    chosen, positions = np.zeros(len(starts), bool), np.zeros(len(starts))
    chosen[tokens], positions[tokens] = True, np.repeat(position[inside], extent)
    return chosen & maskable, positions


def _words(starts: np.ndarray, maskable: np.ndarray, lengths: np.ndarray) -> Units:
    """The words with at least one maskable token."""
    starts = starts.astype(bool)
    starts[np.cumsum(lengths) - lengths] = True
    first = np.flatnonzero(starts)
    end = np.append(first[1:], len(starts))
    length = np.add.reduceat(maskable.astype(np.int64), first)
    some = length > 0
    text = np.repeat(np.arange(len(lengths)), lengths)[first]
    return Units(text[some], first[some], end[some], length[some], np.zeros(int(some.sum()), np.int64))


def _spans(words: Units, numbers: np.ndarray, key: tuple[int, ...]) -> Units:
    """The words of each text grouped into spans, from the first word on. An unmaskable word ends a span."""
    counts = np.bincount(words.text, minlength=len(numbers))
    before = np.repeat(np.cumsum(counts) - counts, counts)  # the number of words in all texts before
    within = np.arange(len(words.text)) - before
    drawn = uniform((*key, LENGTH), numbers[words.text], within)
    length = 1 + np.searchsorted(np.cumsum(LENGTHS)[:-1], drawn, side="right")
    until = np.cumsum(length) - length
    at = until - (until[before] if len(until) else until)  # the word of its text at which the n-th span begins
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
    """([units] bool, whether the window covers the unit; [units] its position in the window, from 0 to 1)."""
    circle = 2 * units.text + units.circle
    random = uniform((*key, ORDER), numbers[units.text], units.first - begins[units.text])
    order = np.lexsort((random, circle))
    size = np.bincount(circle, weights=units.length, minlength=2 * len(numbers))
    middle = np.empty(len(order))
    starts = np.cumsum(size) - size
    middle[order] = (np.cumsum(units.length[order]) - units.length[order] / 2) - starts[circle[order]]
    pairs = size.reshape(-1, 2)
    window = share * pairs.sum(1)
    zeros = np.zeros_like(numbers)
    on_second = uniform((*key, CIRCLE), numbers, zeros) * pairs.sum(1) < pairs[:, 1]
    # A window longer than its circle continues on the other one.
    offset = np.stack([np.where(on_second, pairs[:, 1], 0), np.where(on_second, 0, pairs[:, 0])], 1).reshape(-1)
    shift = uniform((*key, SHIFT), numbers, zeros)[units.text]
    position = offset[circle] + np.mod(middle - shift * size[circle], size[circle])
    return position < window[units.text], position / window[units.text]
