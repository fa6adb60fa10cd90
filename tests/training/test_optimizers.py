"""Optimisers by their names in transformers: resumed bit for bit, or refused before the first step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, trained
from safetensors.torch import load_file

from lmtrain.training.trainer import ExactTrainer

ON_A_CPU = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
            "schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"]  # fmt: skip


def flags(material: Path, optimizer: str) -> list[Any]:
    return [*scratch("gpt2"), "-d", material / "text.jsonl", "-L", 32, "--val-split", 0.1, "--samples", 0, "--max-steps", 9,
            "--optim", optimizer, "--save-every", 4, "--keep", 9, "--lr", 1e-2]  # fmt: skip


@pytest.mark.parametrize("optimizer", ON_A_CPU)
def test_a_resumed_run_equals_the_whole_one(optimizer: str, material: Path):
    trained("clm", *flags(material, optimizer), "-o", "whole")
    shutil.copytree("whole", "cut")
    for later in Path("cut/checkpoints").glob("checkpoint-*"):
        if later.name != "checkpoint-4":
            shutil.rmtree(later)
    results = json.loads(Path("cut/results.json").read_text())
    Path("cut/results.json").write_text(json.dumps({**results, "status": "interrupted"}))
    again = trained("clm", *flags(material, optimizer), "-o", "cut", "--resume", "auto")
    assert again["metrics"] == results["metrics"]
    assert Path("cut/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "galore_adamw", "lomo"])
def test_an_optimizer_whose_library_is_missing_is_refused_before_work(optimizer: str, material: Path):
    outcome = lmtrain("clm", *flags(material, optimizer), "-o", "run")
    assert outcome.code == 2 and f"--optim {optimizer}" in outcome.err and "nstall" in outcome.err
    assert not Path("run").exists()


def test_a_schedule_free_optimizer_is_scored_and_saved_at_its_average(material: Path, monkeypatch: pytest.MonkeyPatch):
    """The average by the formula of the paper: x = y + (z - y) (1 - 1 / beta)."""
    more = [*flags(material, "schedule_free_adamw"), "--val-split", 0, "--set", "train.adam_beta1=0.8"]
    trained("clm", *more, "-o", "averaged")
    monkeypatch.setattr(ExactTrainer, "take_weights_to_use", lambda self: None)
    trained("clm", *more, "-o", "own")
    state = json.loads(Path("own/checkpoints/checkpoint-9/resume.json").read_text())
    assert "train_mode" in json.dumps(state)
    tensors = load_file("own/checkpoints/checkpoint-9/resume.safetensors")
    z = [tensor for name, tensor in tensors.items() if name.endswith(".z")]
    own, averaged = load_file("own/model.safetensors"), load_file("averaged/model.safetensors")
    for name, y in own.items():
        candidates = [y + (other - y) * (1 - 1 / 0.8) for other in z if other.shape == y.shape]
        assert any(torch.allclose(averaged[name], x, atol=1e-6) for x in candidates), name
    assert any(not torch.allclose(own[name], averaged[name], atol=1e-4) for name in own)
