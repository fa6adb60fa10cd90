"""The languages of multilingual tokenizers: only codes of the tokenizer itself, with a suggestion for others."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import M2M100Tokenizer, MBartTokenizer, NllbTokenizer, PreTrainedTokenizerBase

from lmtrain.errors import UsageError
from lmtrain.preprocessing.languages import languages, set_languages

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghij"]


def sentencepiece_model() -> str:
    import sentencepiece

    Path("text.txt").write_text("a good morning to you all\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input="text.txt", model_prefix="spm", vocab_size=20, model_type="char", minloglevel=2
    )
    return "spm.model"


def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    if kind == "m2m_100":
        Path("vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(PIECES)}))
        return M2M100Tokenizer("vocab.json", sentencepiece_model(), num_madeup_words=0)
    scores: Any = [(piece, -1.0) for piece in PIECES]
    numbers: Any = {piece: i for i, piece in enumerate(PIECES)}
    return MBartTokenizer(vocab=scores) if kind == "mbart" else NllbTokenizer(vocab=numbers, merges=[])


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [("m2m_100", "en", "ko"), ("m2m_100", "de", "zh"), ("mbart", "en_XX", "ko_KR"), ("nllb", "eng_Latn", "kor_Hang")],
)
def test_the_languages_are_set(kind: str, source: str, target: str):
    made = tokenizer(kind)
    set_languages(made, source, target)
    assert (made.src_lang, made.tgt_lang) == (source, target)
    first, label = (
        made.convert_ids_to_tokens(made(**text)["input_ids"])[0] for text in ({"text": "a"}, {"text_target": "a"})
    )
    written = {"m2m_100": (f"__{source}__", f"__{target}__"), "nllb": (source, target)}
    if kind in written:
        assert (first, label) == written[kind]


@pytest.mark.parametrize(
    ("kind", "source", "target", "message"),
    [
        ("m2m_100", "en", "zz", "--target-lang zz: the tokenizer does not know this language; it knows af, am"),
        ("m2m_100", "eng", "ko", "--source-lang eng: .*; did you mean 'en'"),
        ("m2m_100", "en", "ko_KR", "--target-lang ko_KR: .*; did you mean 'ko'?"),
        ("m2m_100", "en", None, "--target-lang is missing"),
        ("mbart", "en", "ko_KR", "--source-lang en: .*; did you mean 'en_XX'?"),
        ("mbart", "en_XX", None, "--target-lang is missing"),
        (
            "nllb",
            "en",
            "kor_Hang",
            "--source-lang en: the tokenizer does not know this language; did you mean 'eng_Latn'",
        ),
        ("nllb", "eng_Latn", "kor", "--target-lang kor: .*; did you mean 'kor_Hang'?"),
    ],
)
def test_a_language_of_another_tokenizer_is_refused(kind: str, source: str, target: str | None, message: str):
    with pytest.raises(UsageError, match=message):
        set_languages(tokenizer(kind), source, target)


def test_every_language_is_listed_without_underscores():
    assert {"en", "ko", "zh"} <= set(languages(tokenizer("m2m_100")))
    assert {"en_XX", "ko_KR"} <= set(languages(tokenizer("mbart")))
