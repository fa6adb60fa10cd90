"""A tokenizer compared with the file of its authors, and with the tokenizer of the model whose weights it serves."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmtrain.errors import InputError, visible
from lmtrain.modeling.tokenizer_files import (
    SENTENCEPIECE,
    TOKENIZER_FILE,
    file_of,
    ids_in_config,
    read_tokenizer_file,
)
from lmtrain.preprocessing.sentencepiece_model import reference_of

Encode = Callable[[list[str]], list[list[int]]]
"""Texts -> the ids of each, without special tokens."""

SOME = 2000
"""Pieces of a vocabulary that texts are made of, to compare how two tokenizers cut them."""

WRITINGS = (
    "The quick brown fox's 12 jumps, isn't it? ",
    "  two  spaces,\ttab and\n\nline breaks \n",
    "naïve café Ünlü İstanbul ﬁne ½ № １２３ e\u0301",
    "안녕하세요 한국어 모델입니다. ᄒ\u1161ᆫ글",
    "日本語の文章。中文，简体字。",
    "Привет, мир! γειά σου مرحبا שלום नमस्ते สวัสดี",
    "def f(x): return {'a': [1.5e-3, x**2]} # <b>&amp;</b> http://x.org/?q=1 🙂👩‍👩‍👧 …—“”",
)

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def as_in_file(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer, cutting texts as its tokenizer.json does; and a note where it did not.

    transformers chooses a class by the type of the model, and the class builds most of the tokenizer anew, from the
    vocabulary alone: a GPT-2 with a sentencepiece vocabulary (KoGPT2) would lose all of its text.
    """
    path = file_of(name, TOKENIZER_FILE)
    if path is None or not _is_built_by_class(tokenizer):
        return tokenizer, None
    in_file = read_tokenizer_file(path)
    texts = texts_of(pieces_of(in_file))
    try:
        difference = first_difference(encoder(in_file), encoder(tokenizer.backend_tokenizer), texts)
    except Exception:  # a BERT without the unknown token that its class expects cuts no text at all
        difference = "every text"
    invented = _invented(tokenizer, name, in_file)
    if difference is None and not invented:
        return tokenizer, None
    done = f"adds {', '.join(invented)}" if difference is None else f"cuts {difference} otherwise than the file"
    note = (
        f"{name}: the class {type(tokenizer).__name__}, which transformers chooses for {TOKENIZER_FILE}, {done}; "
        "the tokens are those of the file"
    )
    if hasattr(tokenizer, "src_lang"):  # the class is needed: it puts the languages around a text
        _take_over(tokenizer.backend_tokenizer, in_file)
        return tokenizer, note
    return by_file_alone(name, tokenizer) or tokenizer, note


def check_on_data(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Raise InputError where the texts become other tokens than the tokenizer.json of the tokenizer's authors makes of them."""
    path = file_of(tokenizer.name_or_path, TOKENIZER_FILE)
    if path is None or not _is_built_by_class(tokenizer):
        return
    in_file = read_tokenizer_file(path)
    newer = [token for token in tokenizer.get_added_vocab() if in_file.token_to_id(token) is None]
    common = [text for text in texts if not any(token in text for token in newer)]
    if difference := first_difference(encoder(in_file), encoder(tokenizer.backend_tokenizer), common):
        raise InputError(
            f"{path}: the class {type(tokenizer).__name__}, which transformers chooses, cuts {difference} of the data otherwise; "
            f"--tokenizer {path} takes the tokens of the file"
        )


def check_sentencepiece(tokenizer: PreTrainedTokenizerBase, path: Path) -> str | None:
    """A note where a text becomes other pieces than sentencepiece itself makes of it with the model in `path`."""
    if path.suffix not in SENTENCEPIECE:
        return None
    backend = tokenizer.backend_tokenizer
    difference = first_difference(reference_of(path), encoder(backend), texts_of(pieces_of(backend)))
    return f"{path}: {difference} is cut otherwise than by sentencepiece" if difference else None


def check_belongs(
    tokenizer: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, name: str, model: str
) -> list[str]:
    """Warnings where the tokenizer `name` differs from the `own` one of the trained model `model`.

    Raises InputError where the ids mean other pieces: the trained embeddings are those of the model's own pieces.
    """
    pieces = {index: piece for piece, index in own.get_vocab().items()}
    vocabulary = tokenizer.get_vocab()
    shared = {index: piece for piece, index in vocabulary.items() if index in pieces}
    other = sorted(index for index, piece in shared.items() if pieces[index] != piece)
    examples = ", ".join(
        f"{index} is {visible(shared[index])!r}, not {visible(pieces[index])!r}" for index in other[:2]
    )
    if len(other) > max(len(shared) // 100, 1):
        raise InputError(
            f"--tokenizer {name}: not the tokenizer of {model}: {len(other):,} of its {len(vocabulary):,} ids mean other "
            f"pieces ({examples}), so the trained embeddings do not fit; leave it out, or train from scratch"
        )
    warnings = []
    if other:
        warnings.append(f"--tokenizer {name}: not quite the tokenizer of {model}: id {examples}")
    roles = {role: (getattr(tokenizer, role), getattr(own, role)) for role in ROLES if role != "pad_token"}
    for role, (here, there) in roles.items():
        if here and there and here != there:
            warnings.append(f"--tokenizer {name}: its {role} is {visible(here)}, that of {model} is {visible(there)}")
    if tokenizer.is_fast and own.is_fast and not other:
        theirs, given = own.backend_tokenizer, tokenizer.backend_tokenizer
        difference = first_difference(encoder(theirs), encoder(given), texts_of(pieces_of(theirs)))
        if difference:
            warnings.append(f"--tokenizer {name}: cuts {difference} otherwise than the tokenizer of {model}")
    return warnings


def encoder(tokenizer: Tokenizer) -> Encode:
    """The ids that a tokenizer makes of texts."""
    return lambda texts: [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def first_difference(one: Encode, other: Encode, texts: list[str]) -> str | None:
    """The shortest word or text found, quoted, that two tokenizers cut differently; None where there is none."""
    pairs = zip(texts, one(texts), other(texts), strict=True)
    different = [text for text, first, second in pairs if first != second]
    if not different:
        return None
    words = [word for word in different[0].split(" ") if word]
    parts = [word for word, first, second in zip(words, one(words), other(words), strict=True) if first != second]
    return repr(visible(min(parts or different, key=len)))


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The texts of pieces from all over the vocabulary."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    chosen = [[index] for index in ids[:: max(len(ids) // SOME, 1)]]
    return tokenizer.decode_batch(chosen, skip_special_tokens=True)


def texts_of(pieces: Iterable[str]) -> list[str]:
    """Texts made of pieces, in words and in a row, and of the usual writings."""
    whole = [piece for piece in pieces if piece and "\N{REPLACEMENT CHARACTER}" not in piece]
    groups = [whole[start : start + 10] for start in range(0, len(whole), 10)]
    return [*WRITINGS, *(joint.join(some) for some in groups for joint in (" ", ""))]


def _invented(tokenizer: PreTrainedTokenizerBase, name: str, in_file: Tokenizer) -> list[str]:
    """Special tokens that the class adds by itself: none of the model's files has them."""
    paths = [path for file in DECLARING if (path := file_of(name, file))]
    declared = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    given = {role: getattr(tokenizer, role) for role in ROLES}.values()
    new = dict.fromkeys(token for token in given if token and in_file.token_to_id(token) is None)
    return [] if hasattr(tokenizer, "src_lang") else [token for token in new if token not in declared]


DECLARING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that may declare special tokens beside tokenizer.json."""


def _is_built_by_class(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a class of transformers made the tokenizer anew, rather than reading it as it is."""
    return tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers.models.")


def by_file_alone(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of tokenizer.json and tokenizer_config.json; None where there is no tokenizer.json.

    Roles that these leave open are those of config.json or of the other `tokenizer`. Raises as loading does.
    """
    path = file_of(name, TOKENIZER_FILE)
    if path is None:
        return None
    in_file = read_tokenizer_file(path)
    alone = PreTrainedTokenizerFast.from_pretrained(name)
    known: dict[str, str | None] = {role: in_file.id_to_token(index) for role, index in ids_in_config(name).items()}
    for role in ROLES:
        token = known.get(role) or (None if tokenizer is None else getattr(tokenizer, role))
        if getattr(alone, role) is None and token is not None and in_file.token_to_id(token) is not None:
            alone.add_special_tokens({role: token})
    return alone


def _take_over(backend: Tokenizer, in_file: Tokenizer) -> None:
    """Cut texts as another tokenizer does; special tokens stay."""
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        setattr(backend, part, getattr(in_file, part))
