"""Small tokenizers of the kinds that are in use, each built from tokenizers' own parts."""

from collections.abc import Callable, Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.train_tokenizer import train_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(texts: list[str], words: str | None = None, merges_across: bool = False) -> Tokenizer:
    """GPT-2's kind; with `words`, that of Qwen and Llama 3; with `merges_across`, tokens hold several words."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None and not merges_across)
    split = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=BYTES, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def llama2(texts: list[str]) -> Tokenizer:
    """One word without end for the model: only a normalizer, which puts ▁ before the text."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    learnt.train_from_iterator([text.replace("\n", " ") for text in texts], trainer)
    import json

    model = json.loads(learnt.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for value in range(256):
        vocabulary.setdefault(f"<0x{value:02X}>", len(vocabulary))
    vocabulary.setdefault("▁▁", len(vocabulary))
    merges = [*map(tuple, model["merges"]), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def unigram(texts: list[str], scheme: str, *more: normalizers.Normalizer) -> Tokenizer:
    """T5's and XLM-R's kind: runs of spaces become one, the end is stripped, ▁ begins a word."""
    tokenizer = train_tokenizer("unigram:260", texts, OBJECTIVES["seq2seq"].special_tokens).backend_tokenizer
    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("\n", " ")]
    tokenizer.normalizer = normalizers.Sequence([*more, normalizers.Strip(left=False, right=True), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


def of_lmtrain(kind: str, objective: str = "clm") -> Callable[[list[str]], Tokenizer]:
    return lambda texts: train_tokenizer(kind, texts, OBJECTIVES[objective].special_tokens).backend_tokenizer


def marked(texts: list[str]) -> Tokenizer:
    """GPT-2's kind with added tokens that take the white space around them."""
    tokenizer = byte_level(texts)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<tag>", rstrip=True), AddedToken("  ")])
    return tokenizer


BUILDERS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "gpt2": byte_level,
    "llama2": llama2,
    "t5": lambda texts: unigram(texts, "always"),
    "xlm-r": lambda texts: unigram(texts, "first", normalizers.NFKC()),
    "qwen": lambda texts: byte_level(texts, QWEN_WORDS),
    "llama3": lambda texts: byte_level(texts, LLAMA3_WORDS),
    "bert": of_lmtrain("wordpiece:300", "mlm"),
    "char": of_lmtrain("char"),
    "bpe:N": of_lmtrain("bpe:400"),
    "added tokens": marked,
    "words together": lambda texts: byte_level(texts, merges_across=True),
}
"""Kind -> builder of a tokenizer that learns from texts."""

NEVER_CUT = ("words together",)
"""Kinds whose tokens reach across white space, so that a text cannot be cut."""


def build(kind: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    roles = (
        {"pad_token": "[PAD]"} if kind == "bert" else {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    return PreTrainedTokenizerFast(tokenizer_object=BUILDERS[kind](list(texts)), **roles)


PROSE = "It was late. The old man, who had come alone, sat down by the fire!\n\n“Why,” he asked, “are you sad?”\n" * 9
KOREAN = "그는 학교에 갔다. 비가 왔지만, 우산이 없었다.\n\n“왜 울어요?” 아이가 물었다. 3월 1일이었다!\n" * 12
CODE = (
    "def add(a, b):\n    # sums two numbers\n\treturn a + b\n\n\nfor i in range(10):\n    print(add(i, 2 ** i))\n" * 9
)
MARKDOWN = (
    "# A title\n\nSome *text* here.\n\n- one\n- two  \n\n```\n  code\n```\n\n| a | b |\n|---|---|\n\n***\n\n" * 9
)
CHINESE = "我们去学校吧。他走了！\n「为什么？」不知道\n明天见\n" * 14
SPECIAL_TEXT = "One text <mask> ends. <|endoftext|>\nAnother <tag>  one  begins <|endoftext|> and so on\n" * 9
TEXTS = {
    "prose": PROSE,
    "korean": KOREAN,
    "code": CODE,
    "markdown": MARKDOWN,
    "windows": PROSE.replace("\n", "\r\n"),
    "chinese": CHINESE,
    "marks": SPECIAL_TEXT,
    "blank": " \n\n  \n" * 60,
    "one word": "a" * 900,
}
