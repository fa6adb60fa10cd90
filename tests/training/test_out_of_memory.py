"""Faked lack of memory: fewer rows at once with equal losses, remembered by resume."""

import json
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, trained
from tiny_models import MODELS
from transformers import BertForMaskedLM, GPT2LMHeadModel, T5ForConditionalGeneration
from trials import note_texts

from lmtrain.training.trainer import ExactTrainer

CLASSES = {"clm": GPT2LMHeadModel, "mlm": BertForMaskedLM, "seq2seq": T5ForConditionalGeneration}


def command(objective: str, material: Path, run: str, *flags: Any) -> list[Any]:
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    alone = [] if objective == "seq2seq" else ["--no-packing"]
    return [
        objective,
        *scratch(MODELS[objective]),
        *alone,
        "-d",
        data,
        "-o",
        run,
        "--max-steps",
        3,
        "--log-every",
        1,
        "--val-split",
        0.1,
        "--samples",
        0,
        "--lr",
        1e-3,
        *flags,
    ]


def full_above(rows: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fake a device with memory for `rows` rows; the list gets the rows of every training forward that was tried."""
    forward, tried, texts = model.forward, [], note_texts(monkeypatch.setattr)

    @wraps(forward)  # its signature is inspected
    def limited(self: Any, *arguments: Any, **inputs: Any) -> Any:
        given = [t for t in (*arguments, *inputs.values()) if isinstance(t, torch.Tensor) and t.dim()]
        count = texts[-1] if self.training else given[0].shape[0]
        # Before training the model is tried on a few rows, where it is not short of memory.
        if self.training:
            tried.append(count)
        if count > (rows if self.training else max(rows, 8)):
            raise torch.OutOfMemoryError("faked")
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(model, "forward", limited)
    return tried


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "rows"), [("clm", 8), ("clm", 1), ("mlm", 4), ("seq2seq", 2)])
def test_losses_match_a_run_that_began_with_the_rows_that_fit(
    objective: str, rows: int, material: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(*command(objective, material, "small", "-b", rows, "--grad-accum", 16 // rows, "--eval-batch-size", rows))
    full_above(rows, CLASSES[objective], monkeypatch)
    outcome = lmtrain(*command(objective, material, "large", "-b", 16, "--eval-batch-size", 16))
    assert outcome.code == 0, outcome.err
    assert losses("large") == pytest.approx(losses("small"), rel=1e-6)
    small, large = (json.loads(Path(run, "results.json").read_text()) for run in ("small", "large"))
    assert large["metrics"] == pytest.approx(small["metrics"], rel=1e-6)
    assert large["train"]["tokens_trained"] == small["train"]["tokens_trained"]
    assert outcome.err.count("out of memory with 16 rows at once at step 1: continuing with 8") == 1


def test_a_resumed_run_begins_with_the_rows_that_fitted(material: Path, monkeypatch: pytest.MonkeyPatch):
    tried = full_above(4, GPT2LMHeadModel, monkeypatch)
    trained(*command("clm", material, "run", "-b", 16, "--max-steps", 1))
    assert tried == [16, 8, 4, 4, 4, 4]
    tried.clear()
    outcome = lmtrain(*command("clm", material, "run", "-b", 16), "--resume", "auto")
    assert outcome.code == 0, outcome.err
    assert "out of memory" not in outcome.err
    assert tried == [4] * 8, "two steps of 16 rows"


def test_a_single_row_that_does_not_fit_ends_the_run_with_three_suggestions(
    material: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("faked")

    monkeypatch.setattr(ExactTrainer, "compute_loss", full)
    outcome = lmtrain(*command("clm", material, "run", "-b", 4, "--val-split", 0))
    assert outcome.code == 5
    message = outcome.err.replace("\n", " ")
    for words in ("a single row of", "--max-length", "GiB", "--gradient-checkpointing", "--optim adafactor"):
        assert words in message
