"""The exactness table that doctor prints, and the promises behind it, each against an independent computation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lmtrain, trained
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.commands import doctor


@pytest.fixture(scope="module")
def report() -> dict:
    return lmtrain("doctor", "--json", "--quiet").json


@pytest.mark.parametrize("family", doctor.FAMILIES)
def test_the_first_step_is_the_same_in_every_layout_and_in_float64(family: str, report: dict):
    figures = report["loss"][family]["figures"]
    assert set(figures) == {"float64", "16×1", "4×4", "2×8", "2 processes × 8"}
    loss, norm = figures["float64"]
    for layout, (own_loss, own_norm) in figures.items():
        assert own_loss == pytest.approx(loss, rel=1e-5), layout
        assert own_norm == pytest.approx(norm, rel=1e-5), layout


@pytest.mark.parametrize("objective", ["clm", "mlm", "seq2seq"])
def test_resume_is_bit_for_bit(objective: str, report: dict):
    assert report["resume"][objective]


def test_the_plain_mean_of_micro_batches_would_not_pass():
    """What the stock Trainer does with BERT in four micro-batches: the check above must be able to fail."""
    network, examples, collate, loss = doctor._case("bert")
    reference, _ = doctor._reference("bert")
    means = [
        loss(network, batch, (batch["labels"] != -100).sum()).item()
        for start in range(0, doctor.ROWS, 4)
        for batch in [collate([examples[0, row] for row in range(start, min(start + 4, doctor.ROWS))])]
    ]
    assert abs(sum(means) / reference - 1) > 1
    assert abs(sum(means) / len(means) / reference - 1) > 1e-5


def nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return -torch.log_softmax(logits.double(), -1)[torch.arange(len(labels)), labels].sum().item()


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(objective: str, model: Path, data: Path, *flags: object) -> dict:
    """The figures of a model before any training, through the command line."""
    return trained(objective, "--model", model, "--data", data, "--eval-data", data, "--max-steps", 0, *flags)[
        "metrics"
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_causal_evaluation_is_the_likelihood_of_the_documents(batch_size: int, gpt2: Path, material: Path):
    figures = evaluate("clm", gpt2, material / "text.jsonl", "--no-packing", "--eval-batch-size", batch_size)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2).double(), AutoTokenizer.from_pretrained(gpt2)
    total = count = size = 0
    with torch.no_grad():
        for row in rows_of(material / "text.jsonl"):
            ids = torch.tensor([*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id])
            total += nll(model(ids[None]).logits[0, :-1], ids[1:])
            count += len(ids) - 1
            size += len(row["text"].encode())
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_packed_evaluation_is_the_likelihood_of_the_blocks(gpt2: Path, material: Path):
    """Running text: each line tokenised with its line break, all joined and cut; the short last block counts."""
    figures = evaluate("clm", gpt2, material / "prose.txt", "-L", 64)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2).double(), AutoTokenizer.from_pretrained(gpt2)
    ids = [tokenizer.bos_token_id]
    for line in (material / "prose.txt").read_text().splitlines(keepends=True):
        ids += tokenizer(line, add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            block = torch.tensor(ids[start : start + 64])
            total += nll(model(block[None]).logits[0, :-1], block[1:])
            count += len(block) - 1
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)


def test_pair_evaluation_is_the_likelihood_of_the_targets(t5: Path, material: Path):
    figures = evaluate("seq2seq", t5, material / "pairs.jsonl", "--max-source-length", 128, "--max-target-length", 128)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(t5).double(), AutoTokenizer.from_pretrained(t5)
    total = count = 0
    with torch.no_grad():
        for row in rows_of(material / "pairs.jsonl"):
            source, target = (torch.tensor(tokenizer(row[side])["input_ids"]) for side in ("source", "target"))
            start = torch.tensor([model.config.decoder_start_token_id])
            decoder = torch.cat([start, target[:-1]])
            logits = model(input_ids=source[None], decoder_input_ids=decoder[None]).logits[0]
            total += nll(logits, target)
            count += len(target)
            assert target[-1] == tokenizer.eos_token_id
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)


def test_masked_evaluation_repeats_itself_whatever_the_batch(bert: Path, material: Path):
    runs = [
        evaluate("mlm", bert, material / "text.jsonl", "--no-packing", "--eval-batch-size", n) for n in (1, 3, 64, 64)
    ]
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-6)
    other = evaluate("mlm", bert, material / "text.jsonl", "--no-packing", "--seed", 7)
    assert other["eval_loss"] != runs[0]["eval_loss"]


def test_masked_evaluation_is_the_likelihood_of_what_is_masked(bert: Path, material: Path):
    """The masks are read off a batch; the likelihood is computed row by row, without padding, in float64."""
    from lmtrain.config.data import MlmData
    from lmtrain.objectives.mlm import collator

    figures = evaluate("mlm", bert, material / "text.jsonl", "--no-packing")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(bert).double(), AutoTokenizer.from_pretrained(bert)
    collate = collator(tokenizer, MlmData(train=["x"]), 42)
    total = count = right = 0
    with torch.no_grad():
        for number, row in enumerate(rows_of(material / "text.jsonl")):
            ids = torch.tensor(tokenizer(row["text"])["input_ids"]).numpy()
            batch = collate(
                [{"epoch": None, "numbers": np.array([number]), "lengths": np.array([len(ids)]), "input_ids": ids}]
            )
            at = (batch["labels"][0] != -100).nonzero()[:, 0]
            logits = model(batch["input_ids"]).logits[0, at]
            total += nll(logits, batch["labels"][0, at])
            right += int((logits.argmax(-1) == batch["labels"][0, at]).sum())
            count += len(at)
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert figures["masked_accuracy"] == pytest.approx(right / count)


def test_label_smoothing_changes_training_and_not_evaluation(gpt2: Path, material: Path):
    runs = [
        trained(
            "clm",
            "--model",
            gpt2,
            "--data",
            material / "text.jsonl",
            "--max-steps",
            1,
            "--label-smoothing",
            e,
            "-o",
            f"run{e}",
        )
        for e in (0.0, 0.2)
    ]
    assert runs[0]["train"]["first_loss"] != pytest.approx(runs[1]["train"]["first_loss"], rel=1e-4)
    assert runs[0]["initial_metrics"] == runs[1]["initial_metrics"]
