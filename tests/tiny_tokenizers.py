"""Tokenizers of every kind, as tokenizer.json describes them."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
ROLES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
MIXED = ("안녕하세요 한국어 모델 입니다", "Hello tiny model version 2", "Здравствуй мир", "naïve café")


def metaspace_bpe(texts: Sequence[str] = MIXED) -> Tokenizer:
    """Pieces with a visible space, as KoGPT2 has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _trained(tokenizer, texts, trainers.BpeTrainer)


def byte_bpe(texts: Sequence[str] = MIXED) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(tokenizer, texts, trainers.BpeTrainer, initial_alphabet=alphabet, size=300)


def unigram(texts: Sequence[str] = MIXED) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _trained(tokenizer, texts, trainers.UnigramTrainer, unk_token="<unk>")


def wordpiece(texts: Sequence[str] = MIXED) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return _trained(tokenizer, texts, trainers.WordPieceTrainer)


def lowercased(texts: Sequence[str] = MIXED) -> Tokenizer:
    """Lower case without accents, as uncased BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return _trained(tokenizer, texts, trainers.WordPieceTrainer)


def word_level(texts: Sequence[str] = MIXED) -> Tokenizer:
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*SPECIAL])
    return tokenizer


KINDS = {
    "metaspace": metaspace_bpe,
    "bytes": byte_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "lowercased": lowercased,
    "words": word_level,
}


def with_gap(tokenizer: Tokenizer, token: str, index: int) -> Tokenizer:
    """The tokenizer with one more special token, at an id far behind the others."""
    import json

    document = json.loads(tokenizer.to_str())
    document["model"]["vocab"][token] = index
    entry = {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
    document["added_tokens"].append({**entry, "normalized": False, "special": True})
    return Tokenizer.from_str(json.dumps(document))


def _trained(tokenizer: Tokenizer, texts: Sequence[str], trainer: type, size: int = 120, **more: object) -> Tokenizer:
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    made = trainer(vocab_size=size, special_tokens=special, show_progress=False, **more)
    tokenizer.train_from_iterator([*texts] * 30, made)
    return tokenizer
