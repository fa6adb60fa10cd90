"""TODO."""

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
    """The special tokens of an objective, and how they stand around a text (`$A`)."""

    tokens: dict[str, str]
    template: str
    extra: tuple[str, ...] = ()
    """Further special tokens, beside the entries that are asked for."""


SEQUENCE_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens of a tokenizer trained for clm or seq2seq."""


def train_tokenizer(specification: str, texts: Iterable[str], frame: SpecialTokens) -> PreTrainedTokenizerFast:
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
    return with_special_tokens(tokenizer, frame)


def with_special_tokens(tokenizer: Tokenizer, frame: SpecialTokens) -> PreTrainedTokenizerFast:
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
