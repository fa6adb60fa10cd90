"""Cuts a long text into pieces whose token ids, one after the other, are those of the whole text.

A tokenizer encodes a text on one core and holds all of it in memory; pieces are encoded on all cores. A text is cut
between a character and the white space after it, and only if both of these hold:

- no token can reach across the cut: the tokenizer begins a new word there (a pre-token), or no entry of its vocabulary
  has white space after another character;
- the tokens before the cut are the same with and without what follows them, as the tokenizer itself shows there.

A piece comes after the last characters of the piece before it, so that nothing that a tokenizer does at the start of a
text (such as the "▁" of Llama 2 and T5) happens at a cut. The tokens of these characters are left out.

A text that has no such place in 250,000 characters is cut anyway, and the cut is counted.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

PIECE = 16_000
"""Characters that a piece has at least. A text of less than twice as many is not cut."""

CONTEXT = 64
"""Characters on both sides of a cut that the tokenizer is asked about; those before it precede the next piece."""

LONGEST = 250_000
"""Characters after which a text is cut wherever it can be, so that it fits into memory."""

TRIES = 30
"""Places that are tried for a cut before the piece grows."""

CUT = re.compile(r"[ \n](?<=\S.)(?=\S)", re.DOTALL)
"""White space between two characters that are none. It comes first in the pattern, because re looks for it fastest then."""
SPACE_INSIDE = re.compile(r"\S[ \n]")
MARKED_SPACE = re.compile(r"[^ ▁ĠĊ\n\t\r][ ▁ĠĊ\n\t\r]")
"""White space within an entry of a vocabulary, as byte-level tokenizers and sentencepiece write it."""


class Piece(NamedTuple):
    """A text, or a piece of one."""

    text: str
    """The piece after its context."""
    context: int = 0
    """Characters at the start that belong to the piece before."""
    tokens: int = 0
    """Tokens of the context."""


def backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The Rust tokenizer of a fast tokenizer, without a maximum length."""
    # A tokenizer.json may contain truncation and padding settings, which would cut rows silently.
    rust = tokenizer.backend_tokenizer
    rust.no_truncation()
    rust.no_padding()
    return rust


class TextCutter:
    """Cuts texts for one tokenizer, or, with None, for training one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None):
        self.tokenizer = tokenizer
        self.forced = 0
        """Cuts at which the tokens may differ from those of the whole text."""

    def pieces(self, parts: Iterable[str], start: Piece | None = None) -> Iterator[Piece]:
        """Yield the pieces of the text that is the concatenation of `parts`; there is at least one.

        `start`, if given, precedes the parts: the last piece of another call.
        """
        buffer, context, tokens = start or Piece("")
        wanted = context + 2 * PIECE
        for part in parts:
            buffer += part
            while len(buffer) >= wanted:
                cut = self._cut(buffer, CUT.finditer(buffer, context + PIECE, len(buffer) - CONTEXT))
                if cut is not None:
                    piece, (buffer, context, tokens) = self._divide(buffer, context, tokens, cut)
                elif len(buffer) >= context + LONGEST:
                    self.forced += 1
                    position = _before_white_space(buffer, context + LONGEST)
                    piece, buffer, context, tokens = Piece(buffer[:position], context, tokens), buffer[position:], 0, 0
                else:
                    wanted = min(2 * len(buffer), context + LONGEST)
                    break
                yield piece
                wanted = context + 2 * PIECE
        yield Piece(buffer, context, tokens)

    def hold_back(self, last: Piece) -> tuple[Piece | None, Piece]:
        """Divide the last piece of a text that goes on: (what can be encoded now, what must wait for the rest)."""
        text, context, tokens = last
        places = list(CUT.finditer(text, context + 1, max(len(text) - CONTEXT, 0)))
        cut = self._cut(text, reversed(places))
        return self._divide(text, context, tokens, cut) if cut else (None, last)

    @staticmethod
    def _divide(text: str, context: int, tokens: int, cut: tuple[int, int]) -> tuple[Piece, Piece]:
        """The pieces before and after a `cut` (position, tokens of the context before it)."""
        position, tokens_before = cut
        start = max(position - CONTEXT, 0)
        return Piece(text[:position], context, tokens), Piece(text[start:], position - start, tokens_before)

    def _cut(self, text: str, places: Iterable[re.Match[str]]) -> tuple[int, int] | None:
        """The first of the `places` at which the tokens allow a cut, with the tokens of the context before it."""
        if self.tokenizer is None:
            return next(((place.start(), 0) for place in places), None)
        if not self._divisible:
            return None
        encode = backend(self.tokenizer).encode
        for place in islice(places, TRIES):
            position = place.start()
            before = text[max(position - CONTEXT, 0) : position]
            alone = encode(before, add_special_tokens=False).ids
            followed = encode(before + text[position : position + CONTEXT], add_special_tokens=False)
            tokens = len(alone)
            if not alone or followed.ids[:tokens] != alone:
                continue
            if self._never_joined or followed.word_ids[tokens - 1 : tokens] != followed.word_ids[tokens : tokens + 1]:
                return position, tokens
        return None

    @cached_property
    def _divisible(self) -> bool:
        """Whether the tokenizer can be asked, and its words (pre-tokens) do not depend on all that precedes them."""
        tokenizer = self.tokenizer
        return bool(tokenizer and tokenizer.is_fast and "FixedLength" not in str(backend(tokenizer).pre_tokenizer))

    @cached_property
    def _never_joined(self) -> bool:
        """Whether no entry of the vocabulary has white space after another character."""
        assert self.tokenizer, "asked only where there is a tokenizer"
        rust = backend(self.tokenizer)
        suspects = [index for entry, index in rust.get_vocab(True).items() if MARKED_SPACE.search(entry)]
        decoded = (rust.decode([index], skip_special_tokens=False) for index in suspects)
        return not any(SPACE_INSIDE.search(text) for text in decoded)


def _before_white_space(text: str, end: int) -> int:
    """The position of the last white space shortly before `end`, or `end` if there is none."""
    found = max(text.rfind(" ", end - PIECE, end), text.rfind("\n", end - PIECE, end))
    return found if found > 0 else end


def training_texts(texts: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the texts (each as its parts) that a tokenizer is trained on, long ones in pieces."""
    cutter = TextCutter(None)
    for parts in texts:
        yield from (piece.text[piece.context :] for piece in cutter.pieces(parts))
