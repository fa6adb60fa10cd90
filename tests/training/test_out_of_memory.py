"""Out of memory, faked: fewer rows at once, the losses of a run that began with so many, and what resume makes of it."""

import json
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, trained
from transformers import BertForMaskedLM, GPT2LMHeadModel, T5ForConditionalGeneration
from trials import note_texts

from lmtrain.training.trainer import ExactTrainer

MODELS = {
    "clm": ("gpt2", GPT2LMHeadModel),
    "mlm": ("bert", BertForMaskedLM),
    "seq2seq": ("t5", T5ForConditionalGeneration),
}


def command(objective: str, material: Path, run: str, *flags: Any) -> list[Any]:
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    alone = [] if objective == "seq2seq" else ["--no-packing"]
    return [objective, *scratch(MODELS[objective][0]), *alone, "-d", data, "-o", run, "--max-steps", 3, "--log-every", 1,
            "--val-split", 0.1, "--samples", 0, "--lr", 1e-3, *flags]  # fmt: skip


def full_above(rows: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that has memory for so many rows; the list holds the rows of every forward that there was memory for."""
    forward, seen, texts = model.forward, [], note_texts(monkeypatch.setattr)

    @wraps(forward)  # what it takes is asked for
    def limited(self: Any, *arguments: Any, **inputs: Any) -> Any:
        given = [t for t in (*arguments, *inputs.values()) if isinstance(t, torch.Tensor) and t.dim()]
        count = texts[-1] if self.training else given[0].shape[0]
        # Before training the model is asked a few questions about a few rows, where it is not short of memory.
        if count > (rows if self.training else max(rows, 8)):
            raise torch.OutOfMemoryError("faked")
        seen.append(count)
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(model, "forward", limited)
    return seen


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("objective", "rows"), [("clm", 8), ("clm", 1), ("mlm", 4), ("seq2seq", 2)])
def test_the_losses_are_those_of_a_run_that_began_with_as_many_rows(
    objective: str, rows: int, material: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(*command(objective, material, "small", "-b", rows, "--grad-accum", 16 // rows, "--eval-batch-size", rows))
    full_above(rows, MODELS[objective][1], monkeypatch)
    outcome = lmtrain(*command(objective, material, "large", "-b", 16, "--eval-batch-size", 16))
    assert outcome.code == 0, outcome.err
    assert losses("large") == pytest.approx(losses("small"), rel=1e-6)
    small, large = (json.loads(Path(run, "results.json").read_text()) for run in ("small", "large"))
    assert large["metrics"] == pytest.approx(small["metrics"], rel=1e-6)
    assert large["train"]["tokens_trained"] == small["train"]["tokens_trained"]
    assert outcome.err.count("out of memory with 16 rows at once at step 1: going on with 8") == 1


def test_a_resumed_run_does_not_try_again_what_did_not_fit(material: Path, monkeypatch: pytest.MonkeyPatch):
    seen = full_above(4, GPT2LMHeadModel, monkeypatch)
    trained(*command("clm", material, "run", "-b", 16, "--max-steps", 1))
    seen.clear()
    outcome = lmtrain(*command("clm", material, "run", "-b", 16), "--resume", "auto")
    assert outcome.code == 0, outcome.err
    assert "out of memory" not in outcome.err


def test_one_row_too_many_is_told_with_three_things_to_try(material: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("faked")

    monkeypatch.setattr(ExactTrainer, "compute_loss", full)
    outcome = lmtrain(*command("clm", material, "run", "-b", 4, "--val-split", 0))
    assert outcome.code == 5
    message = outcome.err.replace("\n", " ")
    for told in ("a single row of", "--max-length", "GiB", "--gradient-checkpointing", "--optim adafactor"):
        assert told in message
