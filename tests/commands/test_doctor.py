"""The table of doctor, and the promises behind it, each against an independent computation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lmtrain, trained
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.commands import exactness
from lmtrain.modeling.loss import TokenLoss
from lmtrain.preprocessing.batch import IGNORED


@pytest.fixture(scope="module")
def report() -> dict:
    return lmtrain("doctor", "--json", "--quiet").json


@pytest.mark.slow
@pytest.mark.parametrize("family", exactness.FAMILIES)
def test_the_first_step_is_equal_in_every_layout_and_in_float64(family: str, report: dict):
    figures = report["loss"][family]["figures"]
    assert set(figures) == {"float64", "16×1", "4×4", "2×8", "DDP 2", "FSDP2 2"}
    loss, norm = figures["float64"]
    for layout, (own_loss, own_norm) in figures.items():
        assert own_loss == pytest.approx(loss, rel=1e-5), layout
        assert own_norm == pytest.approx(norm, rel=1e-5), layout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clm", "mlm", "seq2seq"])
def test_resume_is_bit_for_bit(objective: str, report: dict):
    assert report["resume"][objective]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the rows of doctor."""
    folder = tmp_path_factory.mktemp("rows")
    exactness.write_rows(folder)
    return folder


def test_doctor_notices_a_mean_of_micro_batch_means(rows: Path, monkeypatch: pytest.MonkeyPatch):
    """The stock Trainer averages the means of unequal micro-batches for models that take no item count."""

    def difference() -> float:
        return exactness.difference({"float64": reference, "4×4": exactness.first_step("bert", rows, 4, 4)})

    def mean(self: TokenLoss, network: torch.nn.Module, batch: dict, items: torch.Tensor) -> torch.Tensor:
        return exact(self, network, batch, (batch["labels"] != IGNORED).sum()) / 4

    reference, exact = exactness.reference("bert", rows), TokenLoss.__call__
    assert difference() <= exactness.TOLERANCE
    monkeypatch.setattr(TokenLoss, "__call__", mean)
    assert difference() > 10 * exactness.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_the_reference_is_the_token_mean_of_transformers_own_losses(family: str, rows: Path):
    run = exactness.assembled(exactness.recipe_for(family, rows, max_steps=1), Path("run"))
    network, collator = run.trainer.model.double().eval(), run.trainer.data_collator
    total = count = 0
    with torch.no_grad():
        for row in range(exactness.ROWS):
            batch = collator([run.data.train[0, row]])
            predicted = batch["labels"][:, 1:] if family == "gpt2" else batch["labels"]
            tokens = int((predicted != IGNORED).sum())
            ids = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            total += network(**ids).loss.item() * tokens if tokens else 0.0
            count += tokens
    assert exactness.reference(family, rows)[0] == pytest.approx(total / count, rel=1e-6)


def nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return -torch.log_softmax(logits.double(), -1)[torch.arange(len(labels)), labels].sum().item()


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(objective: str, model: Path, data: Path, *flags: object) -> dict:
    """The figures of a model before any training, through the command line."""
    return trained(objective, "--model", model, "--data", data, "--eval-data", data, "--max-steps", 0, *flags)[
        "metrics"
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_causal_evaluation_matches_the_likelihood_of_each_document(batch_size: int, gpt2: Path, material: Path):
    figures = evaluate("clm", gpt2, material / "text.jsonl", "--no-packing", "--eval-batch-size", batch_size)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2).double(), AutoTokenizer.from_pretrained(gpt2)
    total = count = size = 0
    with torch.no_grad():
        for row in read_rows(material / "text.jsonl"):
            ids = torch.tensor([*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id])
            total += nll(model(ids[None]).logits[0, :-1], ids[1:])
            count += len(ids) - 1
            size += len(row["text"].encode())
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_evaluation_of_running_text_matches_the_likelihood_of_each_block(gpt2: Path, material: Path):
    """Each line is tokenised with its line break, all are joined and cut; the short last block counts."""
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


def test_seq2seq_evaluation_matches_the_likelihood_of_each_target(t5: Path, material: Path):
    figures = evaluate("seq2seq", t5, material / "pairs.jsonl", "--max-source-length", 128, "--max-target-length", 128)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(t5).double(), AutoTokenizer.from_pretrained(t5)
    total = count = 0
    with torch.no_grad():
        for row in read_rows(material / "pairs.jsonl"):
            source, target = (torch.tensor(tokenizer(row[side])["input_ids"]) for side in ("source", "target"))
            start = torch.tensor([model.config.decoder_start_token_id])
            decoder = torch.cat([start, target[:-1]])
            logits = model(input_ids=source[None], decoder_input_ids=decoder[None]).logits[0]
            total += nll(logits, target)
            count += len(target)
            assert target[-1] == tokenizer.eos_token_id
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-6)


def test_masked_evaluation_does_not_depend_on_the_batch_size(bert: Path, material: Path):
    runs = [
        evaluate("mlm", bert, material / "text.jsonl", "--no-packing", "--eval-batch-size", n) for n in (1, 3, 64, 64)
    ]
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-6)
    other = evaluate("mlm", bert, material / "text.jsonl", "--no-packing", "--seed", 7)
    assert other["eval_loss"] != runs[0]["eval_loss"]


def test_masked_evaluation_matches_the_likelihood_of_the_masked_tokens(bert: Path, material: Path):
    """The masks are read off a batch; the likelihood is computed row by row, without padding, in float64."""
    from lmtrain.config.data import MlmData
    from lmtrain.objectives.objective import OBJECTIVES

    figures = evaluate("mlm", bert, material / "text.jsonl", "--no-packing")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(bert).double(), AutoTokenizer.from_pretrained(bert)
    collate = OBJECTIVES["mlm"].collator(tokenizer, MlmData(train=["x"]), 42)
    total = count = right = 0
    with torch.no_grad():
        for number, row in enumerate(read_rows(material / "text.jsonl")):
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


def test_label_smoothing_changes_training_but_not_evaluation(gpt2: Path, material: Path):
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


@pytest.mark.slow
def test_doctor_reports_upstream_names_that_changed(report: dict):
    assert report["upstream"] == []
