"""Some steps of a training, and what they say of all of it."""

import json
import math
from pathlib import Path

import pytest
from conftest import TINY, lmtrain, scratch


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "model", "file"), [("mlm", "bert", "text"), ("seq2seq", "t5", "pairs")])
def test_it_tells_of_speed_padding_and_the_whole_training_and_keeps_nothing(
    objective: str, model: str, file: str, material: Path
):
    flags = [*scratch(model), "--data", material / f"{file}.jsonl", "-b", 4, "--no-packing"][
        : None if objective == "mlm" else -1
    ]
    outcome = lmtrain("bench", objective, *flags, "--epochs", 1000, "--seconds", 1, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["steps"] > 3 and 0 <= found["padding_fraction"] < 0.02
    assert found["tokens_per_second"] > 0 and found["peak_memory_bytes"] > 1e8
    assert found["share_of_matrix_rate"] == found["flops_per_second"] / found["matrix_flops_per_second"]
    rows = len((material / f"{file}.jsonl").read_text().splitlines())
    train_rows = rows - max(round(rows * 0.05), 1)
    assert found["training_steps"] == pytest.approx(1000 * math.ceil(train_rows / 4), rel=0.05)
    assert found["training_seconds"] > found["steps"] * found["step_seconds"] / 2
    assert not any(Path().iterdir())


def test_its_arithmetic_is_that_of_the_products_of_forward_and_backward(tmp_path: Path):
    """By hand: 12 d² weights a layer, scores and mixtures of T × T, the head at the positions that are predicted."""
    length = 64
    (tmp_path / "x.txt").write_text("a b c d e f g h i j\n" * 400)
    model = dict(part.split("=") for part in TINY["gpt2"].split(","))
    width, layers = int(model["n_embd"]), int(model["n_layer"])
    flags = [
        *scratch("gpt2"),
        "--tokenizer",
        "byte",
        "--data",
        tmp_path / "x.txt",
        "-L",
        length,
        "--packing-strategy",
        "blocks",
    ]
    found = lmtrain("bench", "clm", *flags, "--epochs", 99, "--seconds", 1, "--json", "--quiet").json
    dry = lmtrain("clm", *flags, "--max-steps", 1, "-o", "run", "--json", "--quiet")
    words = json.loads(Path("run/config.json").read_text())["vocab_size"]
    assert dry.code == 0 and found["padding_fraction"] < 0.02
    a_token = 2 * (12 * width**2 * layers + words * width * (length - 1) / length) + 4 * length * width * layers
    assert found["flops_per_second"] / found["tokens_per_second"] == pytest.approx(3 * a_token, rel=0.02)


def test_a_training_that_is_over_at_once_cannot_be_measured(material: Path):
    flags = ["bench", "clm", *scratch("gpt2"), "--data", material / "text.jsonl"]
    outcome = lmtrain(*flags, "--max-steps", 2)
    assert outcome.code == 2 and "the training ends after 2 steps" in outcome.err
    assert lmtrain(*flags, "--max-steps", 0).code == 2
    assert lmtrain(*flags, "--num-processes", 2).code == 2
