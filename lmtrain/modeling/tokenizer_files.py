"""Tokenizers read from the files that hold them: tokenizer.json, a sentencepiece model, a bare vocabulary."""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmtrain.errors import InputError
from lmtrain.preprocessing.sentencepiece_model import load_sentencepiece

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE = (".model", ".spm")
ACCEPTED = "--tokenizer takes tokenizer.json, a sentencepiece .model, vocab.txt, or the folder of a tokenizer"


def file_of(name: str, file: str) -> Path | None:
    """A file of a model, in its folder or in the cache of the hub; None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    cached = None if Path(name).exists() or name.count("/") > 1 else try_to_load_from_cache(name, file)
    return Path(cached) if isinstance(cached, str) else None


def tokenizer_of_file(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a file holds; with what stands beside tokenizer.json about it. Raises InputError."""
    if path.suffix in SENTENCEPIECE:
        return load_sentencepiece(path)
    if path.name in ("vocab.txt", "vocab.json", "merges.txt"):
        tokenizer = _of_vocabulary(path.parent)
    elif path.suffix == ".json":
        read_tokenizer_file(path)
        own = path.name == TOKENIZER_FILE and (path.parent / TOKENIZER_CONFIG).is_file()
        tokenizer = (
            PreTrainedTokenizerFast.from_pretrained(path.parent)
            if own
            else PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
        )
    else:
        tokenizer = None
    if tokenizer is None:
        raise InputError(f"{path}: not a file that holds a tokenizer; {ACCEPTED}")
    return tokenizer


def bare_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with a file of tokens and nothing that names a class; None for another folder."""
    if not folder.is_dir() or any((folder / name).exists() for name in (TOKENIZER_FILE, TOKENIZER_CONFIG)):
        return None
    models = [path for path in folder.iterdir() if path.suffix in SENTENCEPIECE]
    if len(models) == 1 and not (folder / "config.json").exists():
        return load_sentencepiece(models[0])
    return _of_vocabulary(folder)


def read_tokenizer_file(path: Path) -> Tokenizer:
    """The tokenizer that tokenizer.json describes, without its padding and truncation. Raises InputError."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(f"{path}: not a tokenizer.json: {str(error).splitlines()[0]}; {ACCEPTED}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_in_config(name: str) -> dict[str, int]:
    """Attribute of a tokenizer (eos_token, …) -> id, as the model's config.json says."""
    path = file_of(name, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        config = {}
    roles = ("bos_token", "eos_token", "pad_token")
    return {role: config[f"{role}_id"] for role in roles if isinstance(config.get(f"{role}_id"), int)}


def _of_vocabulary(folder: Path) -> PreTrainedTokenizerBase | None:
    """A BERT or a GPT-2 tokenizer, by the files of its vocabulary; None where there are none."""
    tokenizer: PreTrainedTokenizerBase | None = None
    if (folder / "vocab.txt").exists():
        entries = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        cased = any(entry != entry.lower() for entry in entries if not entry.startswith("["))
        tokenizer = BertTokenizer.from_pretrained(folder, do_lower_case=not cased, strip_accents=False)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
    return tokenizer
