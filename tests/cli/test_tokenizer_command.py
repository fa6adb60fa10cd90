"""`lmtrain tokenizer stats`: how tokenizers suit a text, alone and side by side."""

import re
from pathlib import Path

import pytest
from conftest import lmtrain
from transformers import AutoTokenizer

TEXT = "the cat sees the dog, and the dog sees the bird again and again"


@pytest.fixture
def two(material: Path) -> list[str]:
    for kind, name in (("bpe:300", "bpe"), ("wordpiece:200", "wordpiece")):
        outcome = lmtrain("tokenizer", "train", "--data", material / "text.jsonl", "--kind", kind, "-o", name)
        assert outcome.code == 0, outcome.err
    Path("x.txt").write_text(TEXT)
    return ["bpe", "wordpiece"]


def by_hand(name: str) -> dict[str, float]:
    ids = AutoTokenizer.from_pretrained(name)(TEXT, add_special_tokens=False)["input_ids"]
    words = re.findall(r"\w+|[^\w\s]", TEXT)
    return {"tokens": len(ids), "fertility": len(ids) / len(words), "bytes_per_token": len(TEXT.encode()) / len(ids)}


def test_one_tokenizer_is_measured(two: list[str]):
    found = lmtrain("tokenizer", "stats", "bpe", "--data", "x.txt", "--json").json
    assert {name: found[name] for name in by_hand("bpe")} == pytest.approx(by_hand("bpe"))


def test_several_tokenizers_are_measured_on_the_same_texts_and_put_side_by_side(two: list[str]):
    found = lmtrain("tokenizer", "stats", *two, "--data", "x.txt", "--json").json
    assert [values["tokenizer"] for values in found] == two
    for values in found:
        expected = by_hand(values["tokenizer"])
        assert {name: values[name] for name in expected} == pytest.approx(expected)
    table = lmtrain("tokenizer", "stats", *two, "--data", "x.txt").out
    row = next(line for line in table.splitlines() if "tokens" in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == [str(by_hand(name)["tokens"]) for name in two]
