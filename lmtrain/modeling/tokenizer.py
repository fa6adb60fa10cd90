"""The tokenizer of a model: from the hub, from a folder, or trained on the data."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from transformers import AddedToken, AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase

from lmtrain.config.architectures import TRAINED, adapter_base
from lmtrain.config.model import Model
from lmtrain.errors import InputError
from lmtrain.modeling.configuration import LOADING, not_loaded
from lmtrain.modeling.encoder_decoder import check_vocabularies
from lmtrain.preprocessing import chat

USUAL_TOKENS = {
    "mask_token": ("[MASK]", "<mask>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "eos_token": ("</s>", "<|endoftext|>"),
}
"""Special tokens by role, as most tokenizers spell them."""


def load_tokenizer(
    model: Model, kind: str | None = None, learn: Callable[[str], PreTrainedTokenizerBase] | None = None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer that the recipe names, or the model's own; and notes for the user.

    `learn` trains one from a specification such as bpe:8000. `kind` is the kind of the rows to encode, if there are any.
    Raises InputError.
    """
    if model.tokenizer and TRAINED.fullmatch(model.tokenizer):
        assert learn, "only training learns a tokenizer"
        tokenizer = learn(model.tokenizer)
    else:
        tokenizer = _tokenizer_of(model, model.tokenizer or _with_tokenizer(model.encoder or model.name))
        if model.decoder and not model.from_scratch:
            check_vocabularies(tokenizer, _tokenizer_of(model, model.decoder), model.decoder)
    adopted = _adopt_special_tokens(tokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    template, ends = None, []
    if kind == "messages":
        template = chat.ensure_template(tokenizer)
        ends = chat.notes(tokenizer)
    return tokenizer, [note for note in (adopted, template, *ends) if note]


def _tokenizer_of(model: Model, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = _bare_vocabulary(Path(name)) or AutoTokenizer.from_pretrained(
            name, trust_remote_code=model.trust_remote_code
        )
    except LOADING as error:
        raise InputError(not_loaded("tokenizer", name, error)) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name}: no tokenizer there; name one with --tokenizer")
    return tokenizer


def _with_tokenizer(name: str) -> str:
    """The model whose tokenizer to load: an adapter may not have its own, but use that of its base."""
    base = adapter_base(name)
    return base if base and not any(Path(name).glob("tokenizer*")) else name


def _bare_vocabulary(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with a vocabulary file and nothing that names its class: a BERT or a GPT-2 tokenizer."""
    if not folder.is_dir() or any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer: PreTrainedTokenizerBase | None = None
    if (folder / "vocab.txt").exists():
        entries = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        cased = any(entry != entry.lower() for entry in entries if not entry.startswith("["))
        tokenizer = BertTokenizer.from_pretrained(folder, do_lower_case=not cased, strip_accents=False)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
    return tokenizer


def _adopt_special_tokens(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Declare the usual special tokens that are in the vocabulary but have no role; a note for the user."""
    vocabulary = tokenizer.get_vocab()
    adopted: dict[str, str | AddedToken | Sequence[str | AddedToken]] = {
        role: token
        for role, names in USUAL_TOKENS.items()
        for token in names
        if getattr(tokenizer, role) is None and token in vocabulary
    }
    if not adopted:
        return None
    tokenizer.add_special_tokens(adopted)
    return f"the tokenizer declares no {', no '.join(adopted)}: using {', '.join(map(str, adopted.values()))}"


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the entries and their ids: what a metric per token depends on, besides the text."""
    return sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
