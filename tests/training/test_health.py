"""A training that cannot work is stopped or warned of, with the cause."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, trained

from lmtrain.training.trainer import ExactTrainer


def command(material: Path, objective: str = "clm", model: str = "gpt2", *flags: Any) -> list[Any]:
    return [objective, *scratch(model), "-d", material / "text.jsonl", "-L", 32, "-o", "run", "--max-steps", 50,
            "--val-split", 0, "--samples", 0, "--save-every", 1000, *flags]  # fmt: skip


def ended(code: int, message: str, *arguments: Any) -> None:
    outcome = lmtrain(*arguments)
    assert outcome.code == code, outcome.err
    assert message in " ".join(outcome.err.split())


def patched(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> None:
    """`change(trainer, original)` in the place of a method of the trainer."""
    original = getattr(ExactTrainer, name)

    def other(self: Any, *arguments: Any, **options: Any) -> Any:
        return change(self, lambda: original(self, *arguments, **options))

    monkeypatch.setattr(ExactTrainer, name, other)


def relabelled(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The labels of every micro-batch, changed."""

    def altered(trainer: Any, made: Any) -> Any:
        batches, items = made()
        for batch in batches:
            batch["labels"] = change(batch["labels"])
        return batches, items

    patched(monkeypatch, "get_batch_samples", altered)


def test_labels_that_are_all_masked(material: Path, monkeypatch: pytest.MonkeyPatch):
    relabelled(monkeypatch, lambda labels: torch.full_like(labels, -100))
    ended(6, "every label of the first 10 steps is masked", *command(material))


@pytest.mark.parametrize("objective, model", [("clm", "gpt2"), ("mlm", "bert")])
def test_labels_that_are_shuffled(objective: str, model: str, material: Path, monkeypatch: pytest.MonkeyPatch):
    def shuffled(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.clone()
        places = labels != -100
        values = labels[places]
        labels[places] = values[torch.randperm(len(values))]
        return labels

    relabelled(monkeypatch, shuffled)
    ended(6, "do not belong to their inputs", *command(material, objective, model))


def test_a_model_that_is_frozen(material: Path, monkeypatch: pytest.MonkeyPatch):
    def freeze(trainer: Any, made: Any) -> Any:
        trainer.model.requires_grad_(False)
        return made()

    patched(monkeypatch, "get_train_dataloader", freeze)
    ended(3, "no parameter of the model is trained", *command(material))


def test_a_learning_rate_of_zero(material: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(trainer: Any, made: Any) -> Any:
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 0.0)
        return trainer.lr_scheduler

    patched(monkeypatch, "create_scheduler", stopped)
    ended(6, "the weights did not change in the first 10 steps: the learning rate is 0", *command(material))


def test_a_loss_that_is_detached(material: Path, monkeypatch: pytest.MonkeyPatch):
    patched(monkeypatch, "compute_loss", lambda trainer, made: made().detach())
    ended(6, "the loss does not depend on any parameter", *command(material))


def test_a_gradient_of_zero(material: Path, monkeypatch: pytest.MonkeyPatch):
    patched(monkeypatch, "compute_loss", lambda trainer, made: made() * 0)
    ended(6, "the gradient of the first 3 steps is exactly zero", *command(material))


def test_a_row_whose_loss_is_not_a_number(material: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(trainer: Any, made: Any) -> Any:
        return made() * (float("nan") if trainer.state.global_step == 3 else 1)

    patched(monkeypatch, "compute_loss", broken)
    ended(6, "of step 4 is not a finite number", *command(material))


@pytest.mark.parametrize("objective, model", [("clm", "gpt2"), ("mlm", "bert")])
def test_a_learning_rate_a_thousand_times_too_high(objective: str, model: str, material: Path):
    outcome = lmtrain(*command(material, objective, model, "--lr", 0.5))
    assert "The training diverges; lower --learning-rate (the peak is 0.5)" in " ".join(outcome.err.split())


def test_a_tokenizer_that_knows_nothing_of_the_data(material: Path, bert: Path):
    rows = [{"text": "고양이가 나무를 봅니다 " * 3} for _ in range(40)]
    Path("ko.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    outcome = lmtrain("mlm", "--model", bert, "--data", "ko.jsonl", "-o", "run", "--max-steps", 2, "--val-split", 0)
    assert outcome.code == 3 and "the tokenizer does not know the text" in outcome.err


def test_overfitting_is_named_with_the_best_step(material: Path):
    draw = random.Random(2)
    rows = [{"text": " ".join(draw.choices(["cat", "dog", "bird", "fish", "tree", "king"], k=12))} for _ in range(12)]
    Path("few.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", "few.jsonl", "--val-split", 0.4, "-L", 32, "-o", "run", "--lr", 3e-2,
                      "--max-steps", 150, "--eval-every", 10, "--log-every", 5, "--samples", 0, "--no-packing")  # fmt: skip
    assert outcome.code == 0 and "the model overfits" in outcome.err and "than at step" in outcome.err
    assert outcome.err.count("the model overfits") == 1


@pytest.mark.parametrize("objective, model", [("clm", "gpt2"), ("mlm", "bert"), ("seq2seq", "t5")])
def test_a_training_that_works_is_left_in_peace(objective: str, model: str, material: Path):
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    outcome = lmtrain(objective, *scratch(model), "-d", data, "-L" if objective != "seq2seq" else "--max-source-length", 32,
                      "-o", "run", "--max-steps", 50, "--val-split", 0.1, "--lr", 1e-3)  # fmt: skip
    assert outcome.code == 0
    assert not any(word in outcome.err for word in ("diverges", "overfits", "nothing is learnt", "do not belong"))


def test_resuming_a_paused_run_equals_the_run_in_one_go(material: Path):
    flags = [
        *scratch("gpt2"),
        "-d",
        material / "text.jsonl",
        "-L",
        32,
        "--max-steps",
        12,
        "--val-split",
        0.1,
        "--samples",
        0,
    ]
    whole = trained("clm", *flags, "-o", "whole")
    paused = trained("clm", *flags, "-o", "run", "--stop-at", 5)
    assert paused["status"] == "interrupted" and paused["train"]["steps"] == 5 and paused["metrics"]["eval_loss"]
    assert trained("clm", *flags, "-o", "run", "--stop-at", 5, "--resume", "auto")["metrics"] == paused["metrics"]
    again = trained("clm", *flags, "-o", "run", "--stop-at", 0.75, "--resume", "auto")
    assert again["status"] == "interrupted" and again["train"]["steps"] == 9
    ended_run = trained("clm", *flags, "-o", "run", "--resume", "auto")
    assert ended_run["status"] == "completed" and ended_run["metrics"] == whole["metrics"]
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
