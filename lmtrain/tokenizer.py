"""Tokenizers trained on the data, and what a tokenizer does to a text."""

import io
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from unicodedata import normalize

import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmtrain.architectures import TRAINED
from lmtrain.errors import InputError

AT_ONCE, CHARACTERS_AT_ONCE = 4096, 1_000_000
"""Texts that are tokenised together: enough for all cores, few enough that their encodings are no weight in memory."""


@dataclass(frozen=True)
class Frame:
    """The special tokens of an objective, and how they stand around a text (`$A`)."""

    tokens: dict[str, str]
    template: str
    extra: tuple[str, ...] = ()
    """Further special tokens, beside the entries that are asked for."""


def train(specification: str, texts: Iterable[str], frame: Frame) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind `bpe:N`, `wordpiece:N`, `unigram:N`, `char` or `byte`, with N entries at most.

    bpe and byte work on bytes and lose nothing. wordpiece and unigram compose Unicode (NFC), so that Hangul stays
    in syllables; char knows the characters of the data. The same texts give the same tokenizer. Raises InputError where N leaves no room to learn anything.
    """
    match = TRAINED.fullmatch(specification)
    assert match, "check_model lets no other specification pass"
    kind, size = match[1] or match[3], int(match[2] or 0)
    specials = list(frame.tokens.values())
    unknown = frame.tokens["unk_token"]
    least = len(specials) + (256 if kind == "bpe" else 2)
    if size and size < least:
        raise InputError(f"--tokenizer {specification}: too few; {kind} needs {least} and more")
    tokenizer = BUILDERS[kind](texts, size, specials, unknown)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame.template,
        pair=f"{frame.template} {frame.template.replace('$A', '$B')}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in specials],
    )
    tokenizer.add_special_tokens([*frame.extra])
    return framed(tokenizer, frame)


def framed(tokenizer: Tokenizer, frame: Frame) -> PreTrainedTokenizerFast:
    extra = {"additional_special_tokens": [*frame.extra]} if frame.extra else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **frame.tokens, **extra
    )


def _byte_level(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    tokenizer = _byte_level(Tokenizer(models.BPE()))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    entries = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = _byte_level(Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, [])))
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _char(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    entries = [*specials, *sorted(set().union(*texts))]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))  # without a single merge
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return tokenizer


WORD = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s"


def _wordpiece(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    """WordPiece by merging pairs, as its own trainer does, but the same in every run.

    That trainer numbers the pieces inside a word (##x) in the order of a hash table, which breaks ties anew each time.
    Here a character inside a word is a character of its own (of the private use area) to a BPE trainer, whose order is
    fixed, and gets its ## afterwards.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.BertNormalizer(strip_accents=False, lowercase=False), normalizers.NFC()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    normal = (tokenizer.normalizer.normalize_str(text) for text in texts)
    words = Counter(word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    inside = {
        character: chr(0xF0000 + n) for n, character in enumerate(sorted({c for word in words for c in word[1:]}))
    }
    shift, unshift = str.maketrans(inside), str.maketrans({own: character for character, own in inside.items()})

    merger = Tokenizer(models.BPE())
    merger.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    repeated = (" ".join([word[0] + word[1:].translate(shift)] * count) for word, count in words.items())
    merger.train_from_iterator(
        repeated, trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    )
    pieces = sorted(merger.get_vocab().items(), key=lambda entry: entry[1])
    marked = [("##" if ord(piece[0]) in unshift else "") + piece.translate(unshift) for piece, _ in pieces]
    tokenizer.model = models.WordPiece({piece: n for n, piece in enumerate(marked)}, unk_token=unknown)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _unigram(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    """Unigram by sentencepiece's trainer, which gives the same pieces in every run; tokenizers' own does not."""
    import sentencepiece

    lines = (normalize("NFC", line) for text in texts for line in text.split("\n") if line.strip())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line[i : i + 2000] for line in lines for i in range(0, len(line), 2000)),
            model_writer=model, model_type="unigram", vocab_size=size - len(specials), hard_vocab_limit=False,
            bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0, normalization_rule_name="identity",
            remove_extra_whitespaces=False, max_sentence_length=1 << 20, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).rpartition(")")[2].strip(" .") or str(error)
        raise InputError(f"--tokenizer unigram:{size}: {reason}; ask for another number of entries") from None
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(learnt.id_to_piece(i), learnt.get_score(i)) for i in range(1, learnt.get_piece_size())]
    # A line break is a piece of its own: it is in no line, and would else be unknown.
    entries = [*((special, 0.0) for special in specials), ("\n", 0.0), *pieces]
    tokenizer = Tokenizer(models.Unigram(entries, specials.index(unknown)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(specials)
    return tokenizer


BUILDERS = {"bpe": _bpe, "byte": _byte, "char": _char, "wordpiece": _wordpiece, "unigram": _unigram}


def framing(tokenizer: PreTrainedTokenizerBase, target: bool = False) -> tuple[list[int], list[int]]:
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
