"""Training a tokenizer: byte-level BPE, WordPiece, unigram, characters or bytes."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import normalize

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lmtrain.config.architectures import TRAINED
from lmtrain.errors import InputError


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of an objective and the template that adds them to a text."""

    tokens: dict[str, str]
    """Attribute of the tokenizer (`pad_token`, …) -> token."""
    template: str
    """As in tokenizers' `TemplateProcessing`; `$A` is the text."""
    extra: tuple[str, ...] = ()
    """Additional special tokens, not counted in the requested vocabulary size."""


SEQUENCE_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens of a tokenizer trained for clm or seq2seq."""


def train_tokenizer(
    specification: str, texts: Iterable[str], special_tokens: SpecialTokens
) -> PreTrainedTokenizerFast:
    """Train a tokenizer `bpe:N`, `wordpiece:N`, `unigram:N`, `char` or `byte` with a vocabulary of at most N entries.

    bpe and byte work on bytes and are lossless. wordpiece and unigram normalize to NFC, which keeps Hangul in
    syllables. char knows the characters of `texts`. The result is deterministic. Raises InputError if N is too small.
    """
    match = TRAINED.fullmatch(specification)
    assert match, "check_model refuses any other specification"
    kind, size = match[1] or match[3], int(match[2] or 0)
    specials = list(special_tokens.tokens.values())
    unknown = special_tokens.tokens["unk_token"]
    least = len(specials) + (256 if kind == "bpe" else 2)
    if size and size < least:
        raise InputError(f"--tokenizer {specification}: too small; {kind} needs at least {least} entries")
    tokenizer = BUILDERS[kind](texts, size, specials, unknown)
    template = special_tokens.template
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair=f"{template} $B{template.partition('$A')[2]}",  # BERT's: [CLS] first [SEP] second [SEP]
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in specials],
    )
    tokenizer.add_special_tokens([*special_tokens.extra])
    return with_special_tokens(tokenizer, special_tokens)


def with_special_tokens(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> PreTrainedTokenizerFast:
    """The trained `tokenizer` for transformers, which knows its special tokens."""
    extra = {"additional_special_tokens": [*special_tokens.extra]} if special_tokens.extra else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special_tokens.tokens, **extra
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
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))  # BPE without merges
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return tokenizer


WORD = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s"


def _wordpiece(texts: Iterable[str], size: int, specials: list[str], unknown: str) -> Tokenizer:
    """WordPiece learnt by merging pairs, as tokenizers' WordPieceTrainer does, but deterministic.

    WordPieceTrainer numbers word-internal pieces (##x) in the order of a hash table, so ties break differently in
    every run. Here a BPE trainer, whose order is fixed, sees each word-internal character as a character of the
    private use area; ## is added afterwards.
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
    """Unigram pieces learnt by sentencepiece, which is deterministic; tokenizers' UnigramTrainer is not."""
    import sentencepiece

    lines = (normalize("NFC", line) for text in texts for line in text.split("\n") if line.strip())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line[i : i + 2000] for line in lines for i in range(0, len(line), 2000)),
            model_writer=model,
            model_type="unigram",
            vocab_size=size - len(specials),
            hard_vocab_limit=False,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition(")")[2].strip(" .") or str(error)
        raise InputError(f"--tokenizer unigram:{size}: {reason}; choose another vocabulary size") from None
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(learnt.id_to_piece(i), learnt.get_score(i)) for i in range(1, learnt.get_piece_size())]
    # The line break is added as a piece: it occurs in no line, so it would be unknown.
    entries = [*((special, 0.0) for special in specials), ("\n", 0.0), *pieces]
    tokenizer = Tokenizer(models.Unigram(entries, specials.index(unknown)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(specials)
    return tokenizer


BUILDERS = {"bpe": _bpe, "byte": _byte, "char": _char, "wordpiece": _wordpiece, "unigram": _unigram}
