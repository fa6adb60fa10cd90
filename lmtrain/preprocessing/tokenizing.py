"""Texts -> token ids, with the bytes, words or sentences that the tokens belong to."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import regex
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError
from lmtrain.preprocessing.text_pieces import Piece, TextCutter, backend
from lmtrain.preprocessing.vocabulary import unknown_id

PIECES_AT_ONCE, CHARACTERS_AT_ONCE = 4096, 500_000
"""Limits of one batch for the tokenizer: large enough for all cores, small enough to keep the encodings small."""


def special_token_ids(tokenizer: PreTrainedTokenizerBase, target: bool = False) -> tuple[list[int], list[int]]:
    """(ids of the special tokens that the tokenizer adds before a text, ids of those it adds after it).

    `target`: those of a target text of an encoder-decoder model.
    """
    text = {"text_target" if target else "text": "a"}
    bare = tokenizer(**text, add_special_tokens=False)["input_ids"]
    complete = tokenizer(**text)["input_ids"]
    for start in range(len(complete) - len(bare) + 1):
        if complete[start : start + len(bare)] == bare:
            return complete[:start], complete[start + len(bare) :]
    return [], []


def ids_of(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> Iterator[list[int]]:
    """The ids of each piece without special tokens.

    Calls the Rust tokenizer directly, about twice as fast as with the Python objects around each encoding.
    """
    for batch in _batches(pieces):
        texts = [piece.text for piece in batch]
        if tokenizer.is_fast:
            encoded = [
                encoding.ids for encoding in backend(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
            ]
        else:
            encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for piece, ids in zip(batch, encoded, strict=True):
            yield ids[piece.tokens :] if piece.tokens else ids


def ids_and_bytes(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]
) -> Iterator[tuple[list[int], list[int]]]:
    """(ids without special tokens, number of UTF-8 bytes of each token) of each piece.

    A token's bytes reach from its start to the start of the next token, so the sum is the length of the piece even if
    several tokens share one character. Needs a fast tokenizer.
    """
    for piece, encoding in _encodings(tokenizer, pieces):
        begins = [begin - piece.context for begin, _ in encoding.offsets[piece.tokens :]]
        yield encoding.ids[piece.tokens :], _token_bytes(piece.text[piece.context :], begins)


def ids_and_words(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]
) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids without special tokens, whether each token begins a word) of each piece. Raises as `check_words`.

    Words are the tokenizer's pre-tokens: the parts between spaces and, with most tokenizers, punctuation. In scripts
    without spaces every character is a word, as in BERT, but a token of several characters is never split, nor is a
    character that several tokens share.
    """
    check_words(tokenizer)
    for piece, encoding in _encodings(tokenizer, pieces):
        words = encoding.word_ids
        starts = [word != before for word, before in zip(words, [-1, *words], strict=False)]
        if not piece.text.isascii() and UNSPACED.search(piece.text):
            unspaced = _unspaced_starts(piece.text, encoding.offsets)
            starts = [a or b for a, b in zip(starts, unspaced, strict=True)]
        yield encoding.ids[piece.tokens :], starts[piece.tokens :]


def ids_and_sentences(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]
) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids without special tokens, whether each token begins a sentence) of each piece.

    A sentence ends at . ! ? or … before white space, unless a lowercase letter follows; at their Chinese and Japanese
    counterparts; and at a blank line. None ends where a text is cut, since a letter or digit precedes the cut.
    """
    for piece, encoding in _encodings(tokenizer, pieces):
        begins = [begin for begin, _ in encoding.offsets]
        starts = [False] * len(begins)
        firsts = [0] * (not piece.context)
        firsts += [bisect_left(begins, match.start("rest")) for match in SENTENCE_END.finditer(piece.text)]
        for first in firsts:
            if first < len(starts):
                starts[first] = True
        yield encoding.ids[piece.tokens :], starts[piece.tokens :]


SENTENCE_END = regex.compile(
    r"(?:[.!?…]+[\"'”’»)\]]*(?P<rest>\s++|$)(?!\p{Ll})|[。！？｡]+[\"'”’」』）)\]]*(?P<rest>)|(?P<rest>\n\s*\n))"
)

UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


def _unspaced_starts(text: str, offsets: list[tuple[int, int]]) -> list[bool]:
    """[tokens] whether a token begins a word next to a character of a script without spaces.

    A token that overlaps an earlier one (they share a character) begins no word.
    """
    unspaced = [UNSPACED.match(character) is not None for character in text]
    starts, reached = [], 0
    for start, end in offsets:
        starts.append(start >= reached and any(unspaced[max(start - 1, 0) : start + 1]))
        reached = max(reached, end)
    return starts


def check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a tokenizer that does not split a text into words."""
    words = tokenizer.is_fast and backend(tokenizer).encode("one two", add_special_tokens=False).word_ids
    if not words or len(set(words)) < 2:
        raise InputError(
            "the tokenizer does not split a text into words, so whole words cannot be masked: use --masking token, "
            "or train one with --tokenizer wordpiece:8000"
        )


def _encodings(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
    """Each piece with its encoding by the Rust tokenizer."""
    for batch in _batches(pieces):
        encodings = backend(tokenizer).encode_batch([piece.text for piece in batch], add_special_tokens=False)
        yield from zip(batch, encodings, strict=True)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        if batch and (len(batch) == PIECES_AT_ONCE or characters + len(piece.text) > CHARACTERS_AT_ONCE):
            yield batch
            batch, characters = [], 0
        batch.append(piece)
        characters += len(piece.text)
    if batch:
        yield batch


def _token_bytes(text: str, starts: list[int]) -> list[int]:
    if not starts:
        return []
    byte_of = list(range(len(text) + 1))  # the byte at which each character begins
    if not text.isascii():
        byte_of = [0]
        for character in text:
            byte_of.append(byte_of[-1] + len(character.encode()))
    bounds = [0, *(byte_of[start] for start in starts[1:]), byte_of[-1]]
    return [after - before for before, after in pairwise(bounds)]


def stats(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Iterable[str]]) -> dict[str, float]:
    """How well a tokenizer fits the texts, each given as its parts.

    `fertility` is tokens per word (a run of letters and digits, or one other character), `bytes_per_token` UTF-8 bytes
    per token, `unknown_rate` the share of unknown tokens.
    """
    cutter = TextCutter(tokenizer)
    pieces = [piece for parts in texts for piece in cutter.pieces(parts)]
    unknown_token = unknown_id(tokenizer)
    tokens = words = size = unknown = 0
    for piece, ids in zip(pieces, ids_of(tokenizer, pieces), strict=True):
        text = piece.text[piece.context :]
        tokens += len(ids)
        unknown += sum(token == unknown_token for token in ids)
        words += len(re.findall(r"\w+|[^\w\s]", text))
        size += len(text.encode())
    return {
        "vocabulary": len(tokenizer),
        "texts": sum(not piece.context for piece in pieces),
        "words": words,
        "bytes": size,
        "tokens": tokens,
        "fertility": tokens / max(words, 1),
        "bytes_per_token": size / max(tokens, 1),
        "unknown_rate": unknown / max(tokens, 1),
    }
