"""`--average`: the mean of the last checkpoints, or a moving average over the steps, tried at the end."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import lmtrain, outcome_of, scratch, trained
from safetensors.numpy import load_file

STEPS = (
    "--max-steps",
    8,
    "--save-every",
    1,
    "--keep",
    20,
    "--eval-every",
    4,
    "--log-every",
    1,
    "--learning-rate",
    0.01,
)
OBJECTIVE = {"gpt2": "clm", "bert": "mlm", "t5": "seq2seq"}


def run(model: str, material: Path, *flags: object) -> tuple:
    objective = OBJECTIVE[model]
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    metric = ("--metric", "chrf") if objective == "seq2seq" else ()
    return (objective, *scratch(model), "--data", data, "--val-split", 0.2, *metric, *STEPS, *flags)


def weights(folder: str, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    return load_file(Path(folder, name))


def of_steps(folder: str, steps: range, name: str = "model.safetensors") -> list[dict[str, np.ndarray]]:
    return [weights(f"{folder}/checkpoints/checkpoint-{step}", name) for step in steps]


@pytest.mark.parametrize("model", OBJECTIVE)
def test_the_mean_of_the_last_checkpoints_is_their_arithmetic_mean(model: str, material: Path):
    done = trained(*run(model, material, "--average", "last:3", "--average-keep", "always", "-o", "run"))
    assert done["averaging"]["steps"] == [6, 7, 8] and done["averaging"]["kept"]
    found = weights("run")
    for name, mean in {
        n: np.mean([w[n].astype(np.float64) for w in of_steps("run", range(6, 9))], 0) for n in found
    }.items():
        assert np.array_equal(found[name], mean.astype(np.float32)), name
    again = trained("eval", "--model", "run")
    assert again["metrics"] == pytest.approx(done["metrics"], rel=1e-6)


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_the_moving_average_follows_its_formula(model: str, material: Path):
    trained(*run(model, material, "--average", "ema:0.8", "--average-keep", "always", "-o", "run"))
    steps = of_steps("run", range(1, 9))
    for name, value in weights("run").items():
        average = steps[0][name].astype(np.float64)
        for step in steps[1:]:
            average = 0.8 * average + 0.2 * step[name].astype(np.float64)
        assert np.allclose(value, average, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("average", ["last:3", "ema:0.8"])
def test_a_paused_run_has_the_same_average(average: str, material: Path):
    flags = ("--average", average, "--average-keep", "always")
    trained(*run("gpt2", material, *flags, "-o", "whole"))
    trained(*run("gpt2", material, *flags, "--stop-at", 4, "-o", "paused"))
    trained(*run("gpt2", material, *flags, "--resume", "auto", "-o", "paused"))
    assert outcome_of("paused") == outcome_of("whole")


@pytest.mark.parametrize(("rate", "average"), [(0.01, "last:8"), (0.3, "ema:0.9")])
def test_the_average_is_kept_only_if_it_is_better(rate: float, average: str, material: Path):
    flags = run("gpt2", material, "--learning-rate", rate)
    plain = trained(*flags, "-o", "plain")
    done = trained(*flags, "--average", average, "-o", "run")
    found = done["averaging"]
    assert found["before"] == plain["metrics"]["eval_loss"]
    assert found["kept"] == (found["average"] < found["before"])
    assert done["metrics"]["eval_loss"] == min(found["average"], found["before"])
    kept, before = weights("run"), weights("plain")
    assert all(np.array_equal(kept[name], before[name]) for name in kept) != found["kept"]


def test_the_mean_of_adapters_is_that_of_their_weights(gpt2: Path, material: Path):
    flags = ("clm", "--model", gpt2, "--lora", "--data", material / "text.jsonl", "--val-split", 0.2, *STEPS)
    trained(*flags, "--average", "last:2", "--average-keep", "always", "-o", "run")
    name = "adapter_model.safetensors"
    found, steps = weights("run", name), of_steps("run", range(7, 9), name)
    assert found
    for key, value in found.items():
        assert np.array_equal(value, np.mean([s[key].astype(np.float64) for s in steps], 0).astype(np.float32)), key


def test_enough_checkpoints_are_kept(material: Path):
    flags = run("gpt2", material, "--keep", 1, "--average", "last:4")
    done = trained(*flags, "-o", "run")
    assert done["averaging"]["steps"] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--average", "last:1"), "write last:N"),
        (("--average", "ema:1.5"), "write last:N"),
        (("--average", "ema:0.9", "--val-split", 0), "needs evaluation data"),
        (("--average", "ema:0.9", "--shard", "fsdp2"), "needs whole weights on one host"),
        (("--average", "last:2", "--set", "train.optim=schedule_free_adamw"), "averages the weights itself"),
        (("--average-keep", "always"), "only with --average"),
    ],
)
def test_averages_that_cannot_be(flags: tuple, message: str, material: Path):
    outcome = lmtrain(*run("gpt2", material, *flags))
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def test_the_results_say_what_was_compared(material: Path):
    trained(*run("gpt2", material, "--average", "last:2", "-o", "run"))
    found = json.loads(Path("run/results.json").read_text())["averaging"]
    assert (found["method"], found["metric"], found["steps"]) == ("last:2", "eval_loss", [7, 8])
    assert found["kept"] == (found["average"] < found["before"])
