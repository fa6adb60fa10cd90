"""Ctrl-C and SIGTERM at every stage of a run: exit code, checkpoint, and identical results after --resume auto."""

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, outcome_of, scratch, trained

from lmtrain.modeling.loss import TokenLoss
from lmtrain.objectives import generation
from lmtrain.runs import checkpoint
from lmtrain.training import assembly
from lmtrain.training.trainer import ExactTrainer

MOMENTS: dict[str, tuple[Any, str]] = {
    "preparation": (assembly, "prepare_data"),
    "micro-batch": (ExactTrainer, "compute_loss"),
    "evaluation": (TokenLoss, "score"),
    "generation": (generation.Interruptible, "__call__"),
    "save": (checkpoint, "seal"),
}


def command(objective: str, model: str, material: Path, run: str) -> list[Any]:
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    alone = [] if objective == "seq2seq" else ["--no-packing"]
    return [
        objective,
        *scratch(model),
        *alone,
        "--data",
        data,
        "-o",
        run,
        "--val-split",
        0.1,
        "-b",
        6,
        "--grad-accum",
        3,
        "--epochs",
        3,
        "--log-every",
        1,
        "--eval-every",
        2,
        "--save-every",
        3,
        "--samples",
        0,
        "--lr",
        1e-3,
    ]


def after(number: int, monkeypatch: pytest.MonkeyPatch, moment: str, sent: int) -> list[int]:
    """Send a signal to this process when a moment is reached for the n-th time; the list counts them."""
    place, name = MOMENTS[moment]
    made: Callable[..., Any] = getattr(place, name)
    reached: list[int] = []

    def signalled(*arguments: Any, **options: Any) -> Any:
        reached.append(1)
        if len(reached) == number:
            os.kill(os.getpid(), sent)
        return made(*arguments, **options)

    monkeypatch.setattr(place, name, signalled)
    return reached


@cache
def whole(objective: str, model: str, material: Path) -> Any:
    folder = str(material / f"whole-{objective}")
    trained(*command(objective, model, material, folder))
    return outcome_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "sent", "objective", "model"),
    [
        ("micro-batch", 2, signal.SIGTERM, "clm", "gpt2"),
        ("micro-batch", 8, signal.SIGINT, "mlm", "bert"),  # half-way through a step
        ("micro-batch", 10, signal.SIGTERM, "clm", "gpt2"),  # the first of the second epoch
        ("micro-batch", 27, signal.SIGTERM, "clm", "gpt2"),  # the last
        ("evaluation", 4, signal.SIGTERM, "clm", "gpt2"),
        ("evaluation", 2, signal.SIGINT, "mlm", "bert"),
        ("generation", 9, signal.SIGTERM, "seq2seq", "t5"),
        ("save", 1, signal.SIGINT, "clm", "gpt2"),
        ("save", 2, signal.SIGTERM, "seq2seq", "t5"),
    ],
)
def test_signal_saves_a_checkpoint_and_the_resumed_run_is_identical(
    moment: str, number: int, sent: int, objective: str, model: str, material: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = whole(objective, model, material)
    run = command(objective, model, material, "run")
    with monkeypatch.context() as patched:
        reached = after(number, patched, moment, sent)
        outcome = lmtrain(*run, "--quiet")
        assert len(reached) >= number
    assert outcome.code == 128 + sent, outcome.err
    assert "lmtrain run run/recipe.yaml --resume auto -o run" in outcome.err.replace("\n", " ")
    assert not list(Path("run/checkpoints").glob(".*"))
    trained(*run, "--resume", "auto")
    assert outcome_of("run") == expected


def test_signal_before_training_ends_the_command_at_once(material: Path, monkeypatch: pytest.MonkeyPatch):
    after(1, monkeypatch, "preparation", signal.SIGTERM)
    outcome = lmtrain(*command("clm", "gpt2", material, "run"))
    assert outcome.code == 143
    assert not Path("run").exists()


def test_run_killed_after_its_last_step_is_completed_without_training(material: Path, monkeypatch: pytest.MonkeyPatch):
    run = command("clm", "gpt2", material, "run")
    trained(*run)
    expected = outcome_of("run")
    for name in ("results.json", "model.safetensors"):
        Path("run", name).unlink()
    monkeypatch.setattr(ExactTrainer, "training_step", None)  # would be called
    trained(*run, "--resume", "auto")
    assert outcome_of("run") == expected
