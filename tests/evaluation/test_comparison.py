"""Paired comparison of two models."""

from pathlib import Path

import pytest
from conftest import lmtrain, scratch, trained
from eval_helpers import evaluated


@pytest.mark.slow
def test_a_better_model_is_significantly_better(t5: Path, material: Path):
    data = material / "pairs.jsonl"
    trained("seq2seq", *scratch("t5"), "--data", data, "-o", "better", "--max-steps", 80, "--lr", 1e-2)
    flags = ["--data", data, "--max-source-length", 64, "--max-target-length", 64]
    evaluated("--model", t5, *flags, "--predictions", "worse.jsonl")
    against = evaluated("--model", "better", *flags, "--against", "worse.jsonl")["against"]
    for name in ("eval_loss", "chrf", "rouge1"):
        low, high = against[name]["interval"]
        assert low <= against[name]["difference"] <= high and against[name]["p_value"] < 0.05
        assert high < 0 if name == "eval_loss" else low > 0
    rows = Path("worse.jsonl").read_text().splitlines()
    Path("worse.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    outcome = lmtrain("eval", "--model", "better", *flags, "--against", "worse.jsonl")
    assert outcome.code == 3 and "worse.jsonl, line 1: another row than here" in outcome.err
