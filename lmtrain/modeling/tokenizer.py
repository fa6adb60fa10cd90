"""The tokenizer of a model: from the hub, from a folder or a file, or trained on the data."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from lmtrain.config.architectures import TRAINED, adapter_base
from lmtrain.config.model import Model
from lmtrain.errors import InputError, visible
from lmtrain.modeling.configuration import LOADING, not_loaded
from lmtrain.modeling.encoder_decoder import check_vocabularies
from lmtrain.modeling.tokenizer_checks import as_in_file, by_file_alone, check_belongs, check_sentencepiece
from lmtrain.modeling.tokenizer_files import bare_tokenizer, tokenizer_of_file
from lmtrain.preprocessing import chat

USUAL_TOKENS = {
    "mask_token": ("[MASK]", "<mask>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "bos_token": ("<s>", "[BOS]", "<bos>"),
    "eos_token": ("</s>", "<|endoftext|>", "[EOS]", "<eos>"),
}
"""Special tokens by role, as most tokenizers spell them."""


class LoadedTokenizer(NamedTuple):
    """A tokenizer, and what to report about it."""

    tokenizer: PreTrainedTokenizerBase
    notes: list[str]
    warnings: list[str]


def load_tokenizer(
    model: Model, kind: str | None = None, learn: Callable[[str], PreTrainedTokenizerBase] | None = None
) -> LoadedTokenizer:
    """The tokenizer that the recipe names, or the model's own.

    `learn` trains one from a specification such as bpe:8000. `kind` is the kind of the rows to encode, if there are any.
    Raises InputError.
    """
    notes: list[str | None] = []
    warnings: list[str] = []
    own = _with_tokenizer(model.encoder or model.name)
    if model.tokenizer and TRAINED.fullmatch(model.tokenizer):
        assert learn, "only training learns a tokenizer"
        tokenizer = learn(model.tokenizer)
    else:
        name = model.tokenizer or own
        tokenizer, note = _tokenizer_of(model, name)
        notes.append(note)
        if name != own and not model.from_scratch:
            warnings += _compared_with_own(model, tokenizer, name, own)
        if model.decoder and not model.from_scratch:
            check_vocabularies(tokenizer, _tokenizer_of(model, model.decoder)[0], model.decoder)
    notes.append(_adopt_special_tokens(tokenizer))
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if kind == "messages":
        notes += [chat.ensure_template(tokenizer), *chat.notes(tokenizer)]
    return LoadedTokenizer(tokenizer, [note for note in notes if note], warnings)


def _tokenizer_of(model: Model, name: str) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer of a file, a folder or the hub, and a note on what had to be done."""
    note = None
    try:
        if Path(name).is_file():
            tokenizer = tokenizer_of_file(Path(name))
            note = check_sentencepiece(tokenizer, Path(name))
        elif bare := bare_tokenizer(Path(name)):
            tokenizer = bare
        else:
            tokenizer, note = _by_library(model, name)
    except Exception as error:
        if isinstance(error, InputError) or not _is_fault(error):
            raise
        raise InputError(not_loaded("tokenizer", name, error)) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name}: no tokenizer there; name one with --tokenizer")
    return tokenizer, note


def _by_library(model: Model, name: str) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer that transformers makes, or that of tokenizer.json where it makes another one or none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        alone = by_file_alone(name) if _is_fault(error) and "trust_remote_code" not in str(error) else None
        if alone is None:
            raise
        reason = visible(str(error).strip().split("\n")[0], 100)
        return (
            alone,
            f"{name}: transformers cannot make this tokenizer ({reason}); its tokenizer.json is used as it is",
        )
    return as_in_file(tokenizer, name)


def _is_fault(error: Exception) -> bool:
    """Whether the files are at fault, and not the program. The library tokenizers raises plain Exceptions."""
    return isinstance(error, LOADING) or type(error) is Exception


def _compared_with_own(model: Model, tokenizer: PreTrainedTokenizerBase, name: str, own: str) -> list[str]:
    """Warnings on a tokenizer that is not the model's own. Raises InputError where they do not belong together."""
    try:
        theirs, _ = _tokenizer_of(model, own)
    except InputError:
        return [f"--tokenizer {name}: not compared with the tokenizer of {own}, which cannot be loaded"]
    return check_belongs(tokenizer, theirs, name, own)


def _with_tokenizer(name: str) -> str:
    """The model whose tokenizer to load: an adapter may not have its own, but use that of its base."""
    base = adapter_base(name)
    return base if base and not any(Path(name).glob("tokenizer*")) else name


def added_tokens(model: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens of --tokenizer that were added to the model's own tokenizer, in order; none if it is another one."""
    if model.tokenizer in (None, model.name) or model.from_scratch or model.encoder:
        return []
    try:
        own = _tokenizer_of(model, _with_tokenizer(model.name))[0].get_vocab()
    except InputError:  # the model comes without a tokenizer
        return []
    given, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    if any(given.get(token) != index for token, index in own.items() if index not in added):
        return []
    return sorted(index for index, token in added.items() if own.get(token.content) != index)


def _adopt_special_tokens(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Declare the usual special tokens that are in the vocabulary but have no role; a note for the user."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    adopted: dict[str, str | AddedToken | Sequence[str | AddedToken]] = {}
    for role, names in USUAL_TOKENS.items():
        known = added if role == "bos_token" else vocabulary  # a piece <s> of a text is no mark
        found = next((token for token in names if token in known), None)
        if found and getattr(tokenizer, role) is None:
            adopted[role] = found
    if not adopted:
        return None
    tokenizer.add_special_tokens(adopted)
    return f"the tokenizer declares no {', no '.join(adopted)}: using {', '.join(map(str, adopted.values()))}"


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the entries and their ids: what a metric per token depends on, besides the text."""
    return sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
