"""A sentencepiece .model as a tokenizer: its pieces, its normalisation, and the roles of its control pieces.

The file is a message of protocol buffers, of which a few fields are read (sentencepiece_model.proto), so that the library
protobuf is not needed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import unpack

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmtrain.errors import InputError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Types of pieces."""
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
"""Types of models."""

SPACE = "▁"


@dataclass(frozen=True)
class SentencePieceModel:
    """What decides how a text is cut."""

    pieces: list[tuple[str, float, int]]
    """(piece, score, type) of each id."""
    kind: int
    byte_fallback: bool
    roles: dict[str, int]
    """Attribute of a tokenizer (unk_token, …) -> id."""
    characters: bytes
    """The precompiled table of characters to replace; may be empty."""
    composes: bool
    """Whether this table composes characters, as NFKC does."""
    prefix: bool
    """Whether a space is put before a text."""
    single_spaces: bool
    """Whether spaces around a text and repeated ones are removed."""


def load_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a .model file. Raises InputError for another file."""
    try:
        model = _read(path.read_bytes())
        roles = {role: model.pieces[index][0] for role, index in model.roles.items()}
        tokenizer = _tokenizer(model)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except NotImplementedError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(
            f"{path}: not a model of sentencepiece; --tokenizer takes tokenizer.json, a sentencepiece .model, or a folder"
        ) from None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)


def reference_of(path: Path) -> Callable[[list[str]], list[list[int]]]:
    """How sentencepiece itself cuts texts."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path)).encode


# --- the file --------------------------------------------------------------------------------------------------------


def _read(content: bytes) -> SentencePieceModel:
    fields = [*_fields(content)]
    trainer, normalizer = (dict(_fields(_last(fields, number))) for number in (2, 3))
    pieces = [_piece(dict(_fields(value))) for number, value in fields if number == 1 and isinstance(value, bytes)]
    unknown = _signed(trainer.get(40, 0))
    if not 0 <= unknown < len(pieces):
        raise ValueError("no unknown piece")
    ids = {"unk_token": unknown, **{role: _signed(trainer.get(*at)) for role, at in MARKS.items()}}
    return SentencePieceModel(
        pieces,
        kind=_signed(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        roles={role: index for role, index in ids.items() if 0 <= index < len(pieces)},
        characters=_bytes(normalizer.get(2, b"")),
        composes=b"nfkc" in _bytes(normalizer.get(1, b"")),
        prefix=bool(normalizer.get(3, 1)),
        single_spaces=bool(normalizer.get(4, 1)),
    )


MARKS = {"bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
"""Role -> (number of the field of the trainer's settings that holds its id, the id by default)."""


def _piece(fields: dict[int, int | bytes]) -> tuple[str, float, int]:
    score = unpack("<f", _bytes(fields.get(2, bytes(4))))[0]
    return _bytes(fields[1]).decode(), float(score), _signed(fields.get(3, NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message. Raises ValueError, IndexError for other content."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}[wire]
        if at + size > len(message):
            raise ValueError("cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(a number of seven bits a byte, the position behind it)."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _last(fields: list[tuple[int, int | bytes]], number: int) -> bytes:
    return next((_bytes(value) for found, value in reversed(fields) if found == number), b"")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where there should be bytes")
    return value


def _signed(value: int | bytes) -> int:
    """A negative number is stored as its complement of 64 bits."""
    if isinstance(value, bytes):
        raise ValueError("bytes where there should be a number")
    return value - (1 << 64) if value >= 1 << 63 else value


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def _tokenizer(model: SentencePieceModel) -> Tokenizer:
    tokenizer = Tokenizer(_model(model))
    tokenizer.normalizer = normalizers.Sequence(
        [
            # tokenizers looks the characters up one by one, and so would not find a Hangul syllable that is decomposed.
            *([normalizers.NFC()] if model.composes else []),
            *([normalizers.Precompiled(model.characters)] if model.characters else []),
            *([_without(r"\A +| +\z", ""), _without(" {2,}", " ")] if model.single_spaces else []),
            *([normalizers.Prepend(SPACE)] if model.prefix else []),
            normalizers.Replace(" ", SPACE),
        ]
    )
    if not any(SPACE in piece[1:] for piece, *_ in model.pieces):  # no piece reaches over the start of a word
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            *([decoders.ByteFallback()] if model.byte_fallback else []),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if model.prefix else []),
        ]
    )
    marks = {piece for piece, _, kind in model.pieces if kind == CONTROL} | {model.pieces[model.roles["unk_token"]][0]}
    own = {piece for piece, _, kind in model.pieces if kind == USER_DEFINED and model.kind != UNIGRAM}
    for piece in [piece for piece, *_ in model.pieces if piece in marks | own]:
        tokenizer.add_tokens([AddedToken(piece, special=piece in marks, normalized=False)])
    return tokenizer


def _without(pattern: str, replacement: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(pattern), replacement)


def _model(model: SentencePieceModel) -> models.Model:
    unknown = model.roles["unk_token"]
    name = model.pieces[unknown][0]
    if model.kind == UNIGRAM:
        return models.Unigram(_scores(model), unknown, model.byte_fallback)
    vocabulary = {piece: index for index, (piece, *_) in enumerate(model.pieces)}
    if model.kind == WORD:
        raise NotImplementedError("a sentencepiece model of whole words is not read; train one of type unigram or bpe")
    merges = _merges(model) if model.kind == BPE else []
    return models.BPE(vocabulary, merges, unk_token=name, fuse_unk=True, byte_fallback=model.byte_fallback)


def _scores(model: SentencePieceModel) -> list[tuple[str, float]]:
    """The pieces with their scores; one defined by the user outweighs all pieces that it could be made of."""
    best = max((score for _, score, kind in model.pieces if kind == NORMAL), default=0.0)
    return [
        (piece, len(piece.encode()) * best - 0.1 if kind == USER_DEFINED else score)
        for piece, score, kind in model.pieces
    ]


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, the best piece first."""
    rank = {piece: (-score, index) for index, (piece, score, kind) in enumerate(model.pieces) if kind == NORMAL}
    found = [
        (rank[piece], at, piece[:at], piece[at:])
        for piece in rank
        for at in range(1, len(piece))
        if piece[:at] in rank and piece[at:] in rank
    ]
    return [(left, right) for *_, left, right in sorted(found)]
