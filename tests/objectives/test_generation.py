"""What is written as output."""

import json
from pathlib import Path

import pytest
from conftest import lmtrain, scratch, trained
from tiny_tokenizers import ROLES, byte_bpe, word_level, wordpiece
from transformers import PreTrainedTokenizerFast

from lmtrain.objectives.generation import Decoder, decode

MARKS = ["<triplet>", "<subj>", "<obj>"]
TEXTS = {
    "Busan is in Korea": "<triplet> Busan <subj> Korea <obj> country",
    "Kim leads Naver": "<triplet> Kim <subj> Naver",
}


def made(make, **roles: str) -> PreTrainedTokenizerFast:
    tokenizer = make([text for pair in TEXTS.items() for text in pair])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=MARKS,
        **{**ROLES, **roles},
    )


@pytest.mark.parametrize("make", [byte_bpe, word_level, wordpiece])
def test_output_keeps_the_marks_of_its_task(make):
    tokenizer = made(make)
    for text in TEXTS.values():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        around = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert decode(tokenizer, around).split() == text.split()
        assert Decoder(tokenizer, ()).decode(around).split() == text.split()


def test_output_keeps_an_unknown_token_and_leaves_out_ids_without_a_token():
    tokenizer = made(word_level)
    ids = [tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids("Korea"), len(tokenizer) + 5, -100]
    assert decode(tokenizer, ids) == "<unk> Korea"


def test_further_end_token_is_left_out():
    tokenizer = made(word_level)
    ids = tokenizer.convert_tokens_to_ids(["Korea", "<obj>"])
    assert decode(tokenizer, ids, ends=ids[1:]) == "Korea"


def test_language_token_is_left_out():
    tokenizer = made(word_level)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, "en_XX", "ro_RO"]})
    ids = tokenizer.convert_tokens_to_ids(["ro_RO", "Korea", "<obj>"])
    assert decode(tokenizer, ids) == "ro_RO Korea <obj>"
    tokenizer.src_lang = "en_XX"
    assert decode(tokenizer, ids) == "Korea <obj>"


@pytest.mark.slow
def test_model_that_knows_its_rows_matches_them_exactly():
    made(word_level).save_pretrained("tok")
    Path("pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in TEXTS.items()))
    model = [*scratch("t5")[:3], "--model-config", scratch("t5")[4] + ",dropout_rate=0.0", "--tokenizer", "tok"]
    data = ["-d", "pairs.jsonl", "--eval-data", "pairs.jsonl"]
    steps = ["--max-steps", 150, "--batch-size", 2, "--eval-every", 150, "--lr", 1e-2]
    assert trained("seq2seq", *model, *data, *steps, "-o", "run")["metrics"]["exact_match"] == 100
    outcome = lmtrain("generate", "--model", "run", "--prompt", "Kim leads Naver", "--json")
    assert outcome.json["output"] == "<triplet> Kim <subj> Naver"
