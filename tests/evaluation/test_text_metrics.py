"""Text metrics against the sacrebleu command, rouge_score and an independent implementation of SQuAD's definition."""

import collections
import json
import math
import re
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NOUNS, VERBS
from rouge_score.rouge_scorer import RougeScorer

from lmtrain.errors import UsageError
from lmtrain.evaluation import bootstrap, scripts, text_metrics
from lmtrain.metrics import LOWER_IS_BETTER, TEXT_METRICS

ENGLISH = [
    f"The {NOUNS[i % 8]} {VERBS[i % 6]} a {NOUNS[(i * 5) % 8]}, and then it {VERBS[(i + 1) % 6]} me."
    for i in range(40)
]
GERMAN = [
    "Über den Wolken muß die Freiheit wohl grenzenlos sein.",
    "Ein Mädchen läuft – schnell! – nach Hause.",
    "„Hör zu“, sagte er; 3,5 Äpfel reichen nicht.",
]
IDENTICAL = {
    "Korean": ["오늘은 날씨가 맑고 바람이 조금 불었다.", "나는 어제 친구와 함께 도서관에 갔다."],
    "Chinese": ["今天天气很好，我们去公园散步。", "他昨天买了三本书。"],
    "Japanese": ["今日はとても良い天気です。", "彼は昨日図書館で本を三冊借りました。"],
    "Thai": ["วันนี้อากาศดีมาก", "เขาไปซื้อหนังสือที่ตลาดเมื่อวาน"],
    "Arabic": ["الطقس جميل جدا اليوم في المدينة", "ذهب الولد إلى المدرسة صباحا مع أخيه"],
}


def worsened(texts: list[str]) -> list[str]:
    """The texts as a middling system would have them: words dropped, swapped and doubled."""
    made = []
    for number, text in enumerate(texts):
        words = text.split()
        if number % 3 == 0:
            words = words[1:]
        if number % 4 == 1:
            words[0], words[-1] = words[-1], words[0]
        made.append(" ".join(words + words[:1] * (number % 5 == 2)))
    return made


def scored(predictions: list[str], references: list, **how) -> dict[str, bootstrap.Metric]:
    lists = [[texts] if isinstance(texts, str) else texts for texts in references]
    return text_metrics.score(predictions, lists, scripts.detect_script((t for texts in lists for t in texts), **how))


def command(predictions: list[str], streams: list[list[str]], *flags: str) -> list[dict]:
    """What the sacrebleu command prints for the same files, to eight digits."""
    Path("hyp").write_text("\n".join(predictions) + "\n", encoding="utf-8")
    for number, stream in enumerate(streams):
        Path(f"ref{number}").write_text("\n".join(stream) + "\n", encoding="utf-8")
    references = [f"ref{number}" for number in range(len(streams))]
    run = [sys.executable, "-m", "sacrebleu", *references, "-i", "hyp", "-m", "bleu", "chrf", "ter", "-w", "8", *flags]
    printed = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return printed if isinstance(printed, list) else [printed]


ASIAN_TER = ("--ter-normalized", "--ter-asian-support")


@pytest.mark.parametrize(
    ("texts", "flags"),
    [
        (ENGLISH, ()),
        (GERMAN, ()),
        (IDENTICAL["Arabic"], ()),
        (IDENTICAL["Korean"], ("--tokenize", "char")),
        (IDENTICAL["Chinese"], ("--tokenize", "zh", *ASIAN_TER)),
        (IDENTICAL["Japanese"], ("--tokenize", "char", *ASIAN_TER)),
    ],
)
def test_bleu_chrf_and_ter_match_the_sacrebleu_command(
    texts: list[str], flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scripts, "find_spec", lambda name: None)
    predictions = [text[: -len(text) // 3] for text in texts] if "char" in flags else worsened(texts)
    own = scored(predictions, texts)
    for names, more in (("bleu chrf ter", ()), ("bleu chrfpp ter", ("--chrf-word-order", "2"))):
        for name, printed in zip(names.split(), command(predictions, [texts], *flags, *more), strict=True):
            assert own[name].value == pytest.approx(printed["score"], abs=5e-9), name
            assert own[name].signature == printed["signature"]
            assert own[name].value not in (0, 100) or texts in IDENTICAL.values()


def test_intervals_match_the_sacrebleu_command():
    predictions = worsened(ENGLISH)
    own = bootstrap.intervals(scored(predictions, ENGLISH))
    for name, printed in zip(("bleu", "chrf", "ter"), command(predictions, [ENGLISH], "--confidence"), strict=True):
        low, high = own[name]
        assert (high - low) / 2 == pytest.approx(printed["confidence_var"], rel=1e-4), name
        assert low < own[name][1] and low <= printed["confidence_mean"] <= high


def test_p_values_match_a_two_sided_test_of_the_mean():
    """For a plain mean over many rows the bootstrap has to agree with the normal distribution."""
    random = np.random.default_rng(0)
    for shift in (0.0, 0.02, 0.05, 0.1):
        first, second = random.random(400), random.random(400) * 0.9 + shift
        own = bootstrap.compare(*({"x": text_metrics._average(c, "")} for c in (first, second)))["x"]
        gaps = first - second
        z = abs(gaps.mean()) / (gaps.std() / math.sqrt(len(gaps)))
        assert own.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.04)
        assert own.difference == pytest.approx(100 * gaps.mean())
        spread = 1.96 * 100 * gaps.std() / math.sqrt(len(gaps))
        assert own.interval == pytest.approx([own.difference - spread, own.difference + spread], abs=0.6)


def test_a_system_does_not_differ_from_itself():
    same = scored(worsened(ENGLISH), ENGLISH)
    assert {(c.difference, c.p_value) for c in bootstrap.compare(same, same).values()} == {(0.0, 1.0)}


def test_several_references_match_the_sacrebleu_command():
    others = [text.replace("a ", "one ") for text in ENGLISH]
    predictions = worsened(ENGLISH)
    own = scored(predictions, [list(pair) for pair in zip(ENGLISH, others, strict=True)])
    for name, printed in zip(("bleu", "chrf", "ter"), command(predictions, [ENGLISH, others]), strict=True):
        assert own[name].value == pytest.approx(printed["score"], abs=5e-9), name
    uneven = scored(["a b c d e", "f g h i"], [["a b c d e", "x"], ["f g h i"]])
    assert uneven["bleu"].value == pytest.approx(100) and "nrefs:var" in uneven["bleu"].signature
    assert uneven["rouge1"].value == pytest.approx(100)


def test_rouge_of_english_matches_rouge_score():
    texts = [text.replace(", and", ",\nand") for text in ENGLISH]
    predictions = [text.replace("then", "then\n") for text in worsened(texts)]
    own = scored(predictions, texts)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    theirs = [RougeScorer(names).score(t, p) for t, p in zip(texts, predictions, strict=True)]
    for name in names:
        assert own[name].value == pytest.approx(
            100 * sum(row[name].fmeasure for row in theirs) / len(theirs), rel=1e-12
        )
    assert own["rougeL"].value != own["rougeLsum"].value
    assert "unit:rouge_score" in own["rouge1"].signature


def squad(prediction: str, reference: str) -> tuple[float, float]:
    """(exact match, F1) of one answer, after the definition in Rajpurkar et al. 2016, sections 6.1 and 6.2."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    mine, right = words(prediction), words(reference)
    same = sum((collections.Counter(mine) & collections.Counter(right)).values())
    if not same:
        return float(mine == right), float(mine == right)
    precision, recall = same / len(mine), same / len(right)
    return float(mine == right), 2 * precision * recall / (precision + recall)


def test_exact_match_and_f1_match_the_definition_of_squad():
    references = [["The Normans", "Normans", "the normans."], ["10th and 11th centuries"], ["a cat's tail"], ["the"]]
    predictions = ["normans", "in the 10th and 11th", "An cats tail!", "The"]
    own = scored(predictions, references)
    expected = [[squad(p, t) for t in texts] for p, texts in zip(predictions, references, strict=True)]
    assert own["exact_match"].value == pytest.approx(25 * sum(max(e for e, _ in row) for row in expected))
    assert own["f1"].value == pytest.approx(25 * sum(max(f for _, f in row) for row in expected))
    assert own["exact_match"].value == 75


@pytest.mark.parametrize("language", IDENTICAL)
def test_identical_text_has_the_best_value_of_every_metric(language: str):
    own = scored(IDENTICAL[language], IDENTICAL[language])
    assert {name: round(metric.value, 9) for name, metric in own.items()} == {
        name: 0.0 if name in LOWER_IS_BETTER else 100.0 for name in TEXT_METRICS
    }


@pytest.mark.parametrize("text", ["안녕", "좋은", "谢谢", "hello world", "ใช่", "…!"])
def test_short_identical_text_has_the_best_score(text: str):
    own = scored([text], [text])
    assert own["bleu"].value == pytest.approx(100) and "eff:yes" in own["bleu"].signature
    assert own["exact_match"].value == own["f1"].value == 100
    if not text.isascii():  # English of one or two words has no ROUGE-2 in rouge_score, and so not here
        assert own["rouge2"].value == 100


@pytest.mark.parametrize(
    "pair",
    [
        ("정부는 20일 새로운 정책을 발표했다.", "어제 축구 경기에서 20점을 얻었다."),
        ("오늘 기온은 20도입니다.", "그는 20살 학생이다."),
        ("회의에는 모두 20 명이 참석하여 의견을 나누었다.", "이 책은 20 년 전에 처음 나온 소설이다."),
    ],
)
def test_unrelated_korean_that_shares_a_number_scores_low(pair: tuple[str, str]):
    own = scored([pair[0]], [pair[1]])
    assert own["rouge1"].value < 20
    assert RougeScorer(["rouge1"]).score(*pair)["rouge1"].fmeasure > 0.99, "which is what is mended here"


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["Transformer 모델을 fine-tuning 하는 방법을 설명한다."], "Korean"),
        (["PyTorch 2.0 と Transformers を使って学習する。"], "Japanese"),
        (["使用 PyTorch 训练语言模型"], "Chinese"),
        (["He said 안녕 and left the large room quietly."], "spaced"),
        (["Привет, как дела?"], "spaced"),
        (["12345", "!"], "spaced"),
    ],
)
def test_script_is_the_one_of_most_letters(texts: list[str], name: str):
    assert scripts.detect_script(texts).name == name


def test_bleu_reports_that_it_counts_characters_without_the_korean_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scripts, "find_spec", lambda name: None)
    korean = scripts.detect_script(IDENTICAL["Korean"])
    assert korean.bleu == "char" and "lmtrain[korean]" in (korean.note or "")
    assert "tok:char" in text_metrics.score(["가"], [["가"]], korean)["bleu"].signature
    with pytest.raises(UsageError, match=r"lmtrain\[korean\]"):
        scripts.detect_script(IDENTICAL["Korean"], units="morphemes")
    monkeypatch.setattr(scripts, "find_spec", lambda name: object())
    assert scripts.detect_script(IDENTICAL["Korean"]).bleu == "ko-mecab"
    assert scripts.detect_script(IDENTICAL["Japanese"]).bleu == "ja-mecab"


def test_decomposed_hangul_equals_composed_hangul():
    from unicodedata import normalize

    text = IDENTICAL["Korean"][0]
    assert scored([normalize("NFD", text)], [text])["rouge1"].value == 100
