"""Pairs of a separate encoder and decoder."""

import json
from pathlib import Path

import pytest
import torch
from conftest import lmtrain, trained
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM


def test_pair_of_two_trained_models_trains_and_loads(bert: Path, material: Path):
    flags = ["--lr", 1e-3, "--max-steps", 6, "--val-split", 0.1, "-o", "run"]
    outcome = lmtrain("seq2seq", "--encoder", bert, "--decoder", bert, "--data", material / "pairs.jsonl", *flags)
    assert outcome.code == 0, outcome.err
    messages = outcome.err.replace("\n", " ")
    assert "the cross-attention between encoder and decoder is new and starts at random" in messages
    results = json.loads(Path("run/results.json").read_text())
    assert results["metrics"]["eval_loss"] < results["initial_metrics"]["eval_loss"]
    again = lmtrain("eval", "--model", "run", "--json").json["metrics"]
    assert again["eval_loss"] == pytest.approx(results["metrics"]["eval_loss"], rel=1e-6)
    assert lmtrain("generate", "--model", "run", "--prompt", "the cat sees the dog").code == 0
    network = AutoModelForSeq2SeqLM.from_pretrained("run")
    assert type(network).__name__ == "EncoderDecoderModel"
    tokenizer_ids = json.loads(Path("run/config.json").read_text())
    assert tokenizer_ids["decoder_start_token_id"] != tokenizer_ids["eos_token_id"]


def test_both_halves_start_from_their_trained_weights(bert: Path, material: Path):
    flags = ["--max-steps", 0, "--val-split", 0.1, "-o", "run"]
    trained("seq2seq", "--encoder", bert, "--decoder", bert, "--data", material / "pairs.jsonl", *flags)
    before = AutoModelForMaskedLM.from_pretrained(bert).state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained("run").state_dict()
    weight = "encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(after[f"encoder.{weight}"], before[f"bert.{weight}"])
    assert torch.equal(after[f"decoder.bert.{weight}"], before[f"bert.{weight}"])


@pytest.mark.parametrize(
    ("objective", "flags", "code", "message"),
    [
        ("seq2seq", "--encoder BERT", 2, "--encoder and --decoder must be given together"),
        ("seq2seq", "--encoder BERT --decoder BERT --model x", 2, "give either --model, or --encoder and --decoder"),
        ("seq2seq", "--encoder BERT --decoder BERT --lora", 2, "--lora: the cross-attention of a new pair is random"),
        ("clm", "--encoder BERT --decoder BERT", 2, "--encoder and --decoder: only for seq2seq"),
        ("seq2seq", "--encoder BERT --decoder GPT2", 3, "another vocabulary than the encoder"),
        ("seq2seq", "--encoder T5 --decoder BERT", 3, "cannot be the encoder of a pair"),
        ("seq2seq", "--encoder BERT --decoder T5", 3, "cannot be the decoder of a pair"),
        ("seq2seq", "--encoder brt --decoder bert --from-scratch --tokenizer byte", 3, "did you mean 'bert'?"),
        ("seq2seq", "--encoder bert --decoder bert --from-scratch", 2, "has no tokenizer"),
    ],
)
def test_impossible_pairs_are_refused(
    objective: str, flags: str, code: int, message: str, bert: Path, gpt2: Path, t5: Path, material: Path
):
    folders = {"BERT": bert, "GPT2": gpt2, "T5": t5}
    given = [folders.get(flag, flag) for flag in flags.split()]
    outcome = lmtrain(objective, *given, "--data", material / "pairs.jsonl", "-o", "run")
    assert outcome.code == code, outcome.err
    assert message in outcome.err.replace("\n", " ")
    assert not Path("run").exists()
