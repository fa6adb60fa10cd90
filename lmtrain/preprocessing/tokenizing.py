"""Tokenizers trained on the data, and what a tokenizer does to a text."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import regex
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError

AT_ONCE, CHARACTERS_AT_ONCE = 4096, 1_000_000
"""Texts that are tokenised together: enough for all cores, few enough that their encodings are no weight in memory."""


def special_token_ids(tokenizer: PreTrainedTokenizerBase, target: bool = False) -> tuple[list[int], list[int]]:
    """(ids that the tokenizer puts before a text, ids that it puts after it); `target`: where it is to be written."""
    side = {"text_target" if target else "text": "a"}
    bare = tokenizer(**side, add_special_tokens=False)["input_ids"]
    framed = tokenizer(**side)["input_ids"]
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """The bare ids of each text, special tokens not added.

    The Rust tokenizer is asked directly, without the Python objects around every encoding: about twice as fast.
    """
    if not tokenizer.is_fast:
        yield from tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return
    backend = _unlimited(tokenizer)
    for batch in _batches(texts):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield encoding.ids


def ids_and_bytes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """The bare ids of each text, and how many of the text's UTF-8 bytes each token stands for.

    A token stands for the bytes from its own start to the next token's, so that the sum is the length of the text,
    also where several tokens share one character. Needs a fast tokenizer.
    """
    backend = _unlimited(tokenizer)
    for batch in _batches(texts):
        for text, encoding in zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True):
            yield encoding.ids, _token_bytes(text, [begin for begin, _ in encoding.offsets])


def ids_and_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[bool]]]:
    """The bare ids of each text, and whether each token begins a word, see `check_words`.

    Words are those that the tokenizer cuts a text into before it cuts them into tokens: parts between spaces and, with
    most kinds, punctuation. Where a script has no spaces, every character is a word, as BERT has it: no token of it,
    and no character that several tokens share, is cut through.
    """
    check_words(tokenizer)
    backend = _unlimited(tokenizer)
    for batch in _batches(texts):
        for text, encoding in zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True):
            words = encoding.word_ids
            starts = [word != before for word, before in zip(words, [-1, *words], strict=False)]
            if not text.isascii() and UNSPACED.search(text):
                starts = [a or b for a, b in zip(starts, _apart(text, encoding.offsets), strict=True)]
            yield encoding.ids, starts


def ids_and_sentences(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[tuple[list[int], list[bool]]]:
    """The bare ids of each text, and whether each token is the first one of a sentence; the texts go on one after another.

    A sentence ends with . ! ? or … before white space, unless a small letter follows; with their like in Chinese and
    Japanese; and with a blank line.
    """
    backend = _unlimited(tokenizer)
    ended = True
    for batch in _batches(texts):
        for text, encoding in zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True):
            begins = [begin for begin, _ in encoding.offsets]
            starts = [False] * len(begins)
            at = [0] * ended + [bisect_left(begins, match.start("rest")) for match in SENTENCE_END.finditer(text)]
            for number in at:
                if number < len(starts):
                    starts[number] = True
            ended = at[-1:] == [len(starts)] or not text.strip()
            yield encoding.ids, starts


SENTENCE_END = regex.compile(
    r"(?:[.!?…]+[\"'”’»)\]]*(?P<rest>\s++|$)(?!\p{Ll})|[。！？｡]+[\"'”’」』）)\]]*(?P<rest>)|(?P<rest>\n\s*\n))"
)


UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


def _apart(text: str, offsets: list[tuple[int, int]]) -> list[bool]:
    """Whether each token begins where those before end, and the character there, or before it, is of such a script."""
    own = [UNSPACED.match(character) is not None for character in text]
    found, reached = [], 0
    for start, end in offsets:
        found.append(start >= reached and any(own[max(start - 1, 0) : start + 1]))
        reached = max(reached, end)
    return found


def check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a tokenizer that does not tell the words of a text."""
    told = tokenizer.is_fast and _unlimited(tokenizer).encode("one two", add_special_tokens=False).word_ids
    if not told or len(set(told)) < 2:
        raise InputError("the tokenizer does not part a text into words, so none can be masked whole: use --masking token, "
                         "or train one with --tokenizer wordpiece:8000")  # fmt: skip


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    start = 0
    while start < len(texts):
        some = texts[start : start + AT_ONCE]
        taken = max(sum(size <= CHARACTERS_AT_ONCE for size in accumulate(map(len, some))), 1)
        yield some[:taken]
        start += taken


def _token_bytes(text: str, starts: list[int]) -> list[int]:
    if not starts:
        return []
    at = list(range(len(text) + 1))
    if not text.isascii():
        at = [0]
        for character in text:
            at.append(at[-1] + len(character.encode()))
    bounds = [0, *(at[start] for start in starts[1:]), at[-1]]
    return [after - before for before, after in pairwise(bounds)]


def _unlimited(tokenizer: PreTrainedTokenizerBase) -> Any:
    # A tokenizer.json may carry the truncation and padding of whoever saved it: rows would be cut in silence.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def stats(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, float]:
    """How a tokenizer suits a text.

    `fertility` is tokens per word (a run of letters and digits, or one other sign), `bytes_per_token` the UTF-8 bytes
    that a token stands for, `unknown_rate` the share of tokens that are the unknown token.
    """
    texts = list(texts)
    tokens = words = size = unknown = 0
    for text, ids in zip(texts, ids_of(tokenizer, texts), strict=True):
        tokens += len(ids)
        unknown += sum(token == tokenizer.unk_token_id for token in ids)
        words += len(re.findall(r"\w+|[^\w\s]", text))
        size += len(text.encode())
    return {
        "vocabulary": len(tokenizer),
        "texts": len(texts),
        "words": words,
        "bytes": size,
        "tokens": tokens,
        "fertility": tokens / max(words, 1),
        "bytes_per_token": size / max(tokens, 1),
        "unknown_rate": unknown / max(tokens, 1),
    }
