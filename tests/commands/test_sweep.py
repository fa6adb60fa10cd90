"""`lmtrain sweep`: trials, ranking, halving, and going on after a kill."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import lmtrain

from lmtrain.commands.sweep.ranking import ranking, t_bound
from lmtrain.commands.sweep.space import Range, grid_points, parse_grid, parse_ranges, random_points
from lmtrain.commands.sweep.sweep import rung_shares

RECIPE = """
objective: clm
model: {name: gpt2, from_scratch: true, config: {n_layer: 1, n_embd: 16, n_head: 2, n_positions: 32}, tokenizer: byte}
data: {train: DATA, val_split: 0.2}
train: {max_steps: 12, batch_size: 4, save_every: 4}
eval: {samples: 0}
run: {preflight: false}
"""
RATES = "train.learning_rate=1e-5,1e-2,1e-3,1e-4"
BEST = {"train.learning_rate": 1e-2}


@pytest.fixture
def recipe(material: Path) -> str:
    Path("own.yaml").write_text(RECIPE.replace("DATA", str(material / "text.jsonl")))
    return "own.yaml"


def trial(settings: dict, value: float, status: str = "completed") -> dict:
    return {"settings": settings, "status": status, "metrics": {"eval_loss": value}, "path": "p"}


def test_a_grid_is_every_combination():
    grid = parse_grid(["train.learning_rate=1e-4,3e-4", "train.optim=sgd,adamw_torch"])
    assert grid == {"train.learning_rate": [1e-4, 3e-4], "train.optim": ["sgd", "adamw_torch"]}
    assert len(grid_points(grid)) == 4 and grid_points(grid)[1] == {
        "train.learning_rate": 1e-4,
        "train.optim": "adamw_torch",
    }


def test_draws_lie_in_their_ranges_and_repeat():
    ranges = parse_ranges(["train.learning_rate=1e-5:1e-3:log", "train.batch_size=2:16"])
    drawn = random_points(ranges, {}, 200, seed=3)
    assert drawn == random_points(ranges, {}, 200, seed=3) != random_points(ranges, {}, 200, seed=4)
    rates = [point["train.learning_rate"] for point in drawn]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 60 < sum(rate < 1e-4 for rate in rates) < 140  # half of them: evenly by order of magnitude
    assert {type(point["train.batch_size"]) for point in drawn} == {int}
    assert Range(1, 3, False, True).draw(0.999) == 3


def test_a_combination_is_drawn_once():
    grid = parse_grid(["train.batch_size=8,16", "model.lora_targets=[q_proj,v_proj],[q_proj]"])
    assert grid["model.lora_targets"] == [["q_proj", "v_proj"], ["q_proj"]]
    drawn = random_points({}, grid, 12, seed=1)
    assert len(drawn) == 4 and len({json.dumps(point) for point in drawn}) == 4


def test_the_same_seed_is_no_second_value():
    twice = [{**trial({"a": 1}, 2.0), "seed": 42}] * 2 + [{**trial({"a": 2}, 1.0), "seed": 42}]
    rows = ranking(twice, "eval_loss")
    assert [len(row["values"]) for row in rows] == [1, 1] and rows[1]["within_noise"] is None


def test_rungs_are_shares_of_the_whole_training():
    assert rung_shares(12, 3) == pytest.approx([1 / 9, 1 / 3, 1])
    assert rung_shares(4, 2) == [0.25, 0.5, 1] and rung_shares(1, 3) == [1]


@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (8, 2.306), (30, 2.0423)]
)
def test_the_bound_of_students_t_is_that_of_the_tables(freedom: int, quantile: float):
    assert t_bound(freedom) == pytest.approx(quantile, rel=0.005)


def test_settings_are_ranked_by_the_mean_over_seeds():
    trials = [
        trial({"a": a}, value) for a, values in ((1, (2.0, 2.2)), (2, (1.0, 1.2)), (3, (1.1, 1.3))) for value in values
    ]
    rows = ranking([*trials, trial({"a": 4}, 0.1, "failed")], "eval_loss")
    assert [row["settings"]["a"] for row in rows] == [2, 3, 1]
    assert [row["mean"] for row in rows] == pytest.approx([1.1, 1.2, 2.1])
    assert rows[0]["deviation"] == pytest.approx(math.sqrt(0.02))
    # The standard error of a difference is sqrt(0.02 * (1/2 + 1/2)), times t with 3 degrees of freedom: 0.45.
    assert [row["within_noise"] for row in rows] == [True, True, False]


def test_one_seed_says_nothing_about_noise():
    rows = ranking([trial({"a": 1}, 2.0), trial({"a": 2}, 1.0)], "eval_loss")
    assert [row["within_noise"] for row in rows] == [None, None]


def test_noise_is_called_noise_in_95_of_100_cases():
    draw = random.Random(5)
    worse = 0
    for _ in range(400):
        values = [[draw.gauss(1, 0.1) for _ in range(3)] for _ in range(2)]
        rows = ranking([trial({"a": a}, v) for a, own in enumerate(values) for v in own], "eval_loss")
        worse += rows[1]["within_noise"] is False
    assert worse <= 0.05 * 400 + 13  # three standard deviations


def test_draws_by_tpe_learn_and_repeat():
    pytest.importorskip("optuna")
    from lmtrain.commands.sweep.space import Learner

    def drawn() -> list[float]:
        learner = Learner({"train.learning_rate": Range(1e-5, 1e-1, True, False)}, {}, seed=1, higher=False)
        rates = []
        for _ in range(40):
            asked, settings = learner.ask()
            rates.append(settings["train.learning_rate"])
            learner.tell(asked, (math.log10(rates[-1]) + 3) ** 2)  # the best is 1e-3
        return rates

    rates = drawn()
    assert rates == drawn() and all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert sum(abs(math.log10(rate) + 3) < 0.7 for rate in rates[20:]) > 10


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "what should be tried?"),
        (["--grid", "train.learning_rat=1e-4,1e-3"], "did you mean"),
        (["--grid", "train.learning_rate=0,1"], "learning_rate"),
        (["--grid", "train.learning_rate"], "write it as train.learning_rate=1e-4,3e-4"),
        (["--range", "train.learning_rate=3:1"], "LOW must be below HIGH"),
        (["--range", "train.learning_rate=0:1:log"], "above 0"),
        (["--grid", RATES, "--search", "bayes"], "choose grid, random or tpe"),
        (["--grid", RATES, "--metric", "blue"], "not a metric"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_trial(flags: list[str], message: str, recipe: str):
    outcome = lmtrain("sweep", recipe, *flags, "-o", "sweep")
    assert outcome.code == 2 and message in " ".join(outcome.err.split())
    assert not Path("sweep").exists()


@pytest.mark.slow
def test_the_planted_best_wins_and_its_recipe_runs(recipe: str):
    document = lmtrain("sweep", recipe, "--grid", RATES, "-o", "sweep", "--json").json
    assert document["best"]["settings"] == BEST == document["ranking"][0]["settings"]
    assert [entry["status"] for entry in document["trials"]] == ["completed"] * 4
    best = json.loads(Path(document["ranking"][0]["paths"][0], "results.json").read_text())
    assert document["ranking"][0]["mean"] == best["metrics"]["eval_loss"]
    outcome = lmtrain("run", document["best"]["recipe"], "-o", "again", "--json", "--quiet")
    assert outcome.json["metrics"] == best["metrics"]
    again = lmtrain("sweep", recipe, "--grid", RATES, "-o", "sweep", "--json").json
    assert again == document
    other = lmtrain("sweep", recipe, "--grid", "train.learning_rate=1e-4,1e-3", "-o", "sweep")
    assert other.code == 2 and "holds another sweep (grid" in " ".join(other.err.split())


@pytest.mark.slow
def test_halving_finds_the_same_winner_with_half_of_the_steps(recipe: str):
    document = lmtrain("sweep", recipe, "--grid", RATES, "-o", "sweep", "--halving", 2, "--json").json
    assert document["best"]["settings"] == BEST
    assert sum(entry["steps"] for entry in document["trials"]) <= 4 * 12 * 0.6
    best = json.loads(Path(document["ranking"][0]["paths"][0], "results.json").read_text())
    whole = lmtrain("run", document["best"]["recipe"], "-o", "whole", "--json", "--quiet").json
    assert best["metrics"]["eval_loss"] == whole["metrics"]["eval_loss"]  # pauses change nothing


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the trials with the sweep")
def test_a_killed_sweep_goes_on_and_ends_the_same(recipe: str):
    def table(folder: str) -> list:
        document = json.loads(Path(folder, "sweep.json").read_text())
        return [[entry["settings"], entry["metrics"]] for entry in document["trials"]]

    command = [sys.executable, "-m", "lmtrain", "sweep", recipe, "--grid", RATES, "--quiet", "-o"]
    subprocess.run([*command, "whole"], check=True, capture_output=True)
    killed = subprocess.Popen([*command, "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(Path("killed/trials").glob("001/checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(table("killed")) < 4
    subprocess.run([*command, "killed"], check=True, capture_output=True)
    assert table("killed") == table("whole")
