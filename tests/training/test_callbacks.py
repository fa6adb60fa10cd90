"""A loss or a gradient that is not finite: the update is not applied, the rows are named, checkpoints are from before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, trained
from safetensors.torch import load_file

from lmtrain.training.trainer import ExactTrainer

LAST = 9


def command(material: Path, *flags: Any) -> list[Any]:
    return [
        "clm",
        *scratch("gpt2"),
        "--no-packing",
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "--max-steps",
        LAST,
        "--log-every",
        1,
        "--save-every",
        1,
        "--keep",
        20,
        "--val-split",
        0.1,
        "--eval-every",
        3,
        "--lr",
        1e-3,
        "--samples",
        0,
        *flags,
    ]


def at_step(step: int, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """`fault(trainer, made)` in the place of the micro-batch of a step, which `made()` is."""
    whole = ExactTrainer.training_step

    def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
        def made() -> torch.Tensor:
            return whole(self, *arguments, **options)

        return fault(self, made) if self.state.global_step + 1 == step else made()

    monkeypatch.setattr(ExactTrainer, "training_step", faulty)


def weights(trainer: Any, made: Any) -> Any:
    with torch.no_grad():
        trainer.model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    return made()


def overflow(trainer: Any, made: Any) -> Any:
    with torch.no_grad():
        trainer.model.transformer.wte.weight.fill_(3e38)
    return made()


def gradient(trainer: Any, made: Any) -> Any:
    loss = made()
    trainer.model.transformer.wte.weight.grad[3, 3] = float("inf")
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 7, LAST])
@pytest.mark.parametrize("fault", [weights, overflow, gradient])
def test_it_stops_at_that_step_before_the_update(
    fault: Any, step: int, material: Path, monkeypatch: pytest.MonkeyPatch
):
    at_step(step, monkeypatch, fault)
    outcome = lmtrain(*command(material))
    assert outcome.code == 6, outcome.err
    what = "the gradient" if fault is gradient else "the loss"
    message = outcome.err.replace("\n", " ")
    assert f"{what} of step {step} is not a finite number; the update is not applied" in message
    assert "rows of the step: 'the " in message
    saved = sorted(int(path.name[11:]) for path in Path("run/checkpoints").iterdir())
    assert saved == list(range(1, step))
    assert json.loads(Path("run/results.json").read_text())["status"] == "failed"
    line = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == step
    assert line["loss"] is None
    assert len(line["rows"]) == (6 if step == 7 else 8)  # an epoch ends


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 7, LAST])
def test_a_learning_rate_that_is_absurd_stops_the_run_before_anything_of_it_is_saved(
    step: int, material: Path, monkeypatch: pytest.MonkeyPatch
):
    """The update of the step before makes the weights absurd, and this one sees it, or the evaluation after the last."""

    def absurd(trainer: Any, made: Any) -> Any:
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1e20
        return made()

    at_step(step, monkeypatch, absurd)
    outcome = lmtrain(*command(material, "--save-every", 100))
    assert outcome.code == 6
    for path in Path("run/checkpoints").glob("*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_up_to_so_many_updates_are_left_out(material: Path, monkeypatch: pytest.MonkeyPatch):
    at_step(4, monkeypatch, gradient)
    outcome = lmtrain(*command(material, "--on-nonfinite", "skip 1", "--set", "train.lr_scheduler_kwargs={}"))
    assert outcome.code == 0, outcome.err
    assert "the gradient of step 4 is not a finite number: the update is skipped; skips left: 0" in (
        outcome.err.replace("\n", " ")
    )
    third, fourth, fifth = (load_file(f"run/checkpoints/checkpoint-{step}/model.safetensors") for step in (3, 4, 5))
    assert all(torch.equal(third[name], fourth[name]) for name in third)
    assert not all(torch.equal(fourth[name], fifth[name]) for name in third)


def test_a_step_in_which_nothing_is_predicted_trains_nothing(material: Path, monkeypatch: pytest.MonkeyPatch):
    """Chance may mask nothing: the mean over no token is no reason to stop."""

    from lmtrain.objectives.mlm import MaskedCollator

    scored = MaskedCollator.scored
    monkeypatch.setattr(
        MaskedCollator,
        "scored",
        lambda self, row: (
            (scored(self, row)[0], scored(self, row)[1] * 0 - 100)
            if row["epoch"] is not None and 8 <= row["numbers"][0] < 16
            else scored(self, row)
        ),
    )
    results = trained(
        "mlm",
        *scratch("bert"),
        "--no-packing",
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "--max-steps",
        12,
        "-b",
        1,
        "--log-every",
        1,
        "--val-split",
        0.1,
    )
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("loss") == 0 for line in lines)
    assert results["train"]["steps"] == 12
