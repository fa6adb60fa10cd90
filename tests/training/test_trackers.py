"""Experiment trackers, each with the real package and without a network: figures, recipe and samples."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import lmtrain, scratch, trained


def run(material: Path, tracker: str) -> tuple[dict, list[dict]]:
    results = trained("clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-L", 32, "--val-split", 0.1, "--max-steps", 6,
                      "--eval-every", 3, "--log-every", 1, "--samples", 2, "-o", "run", "--report-to", tracker)  # fmt: skip
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return results, [line for line in logged if "eval_loss" in line]


def test_tensorboard_has_figures_recipe_and_samples(material: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "board")
    results, evaluations = run(material, "tensorboard")
    found = EventAccumulator("board")
    found.Reload()
    values = {event.step: event.value for event in found.Scalars("eval/loss")}
    assert values == pytest.approx({line["step"]: line["eval_loss"] for line in evaluations})
    assert values[6] == pytest.approx(results["metrics"]["eval_loss"])
    recipe = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "objective: clm" in recipe and "learning_rate" not in recipe.split("train:")[0]
    assert [event.step for event in found.Tensors("samples/text_summary")] == [3, 6]


def test_mlflow_has_figures_recipe_and_samples(material: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Path("store").absolute().as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    results, _ = run(material, "mlflow")
    [stored] = list(Path("store").glob("*/*/metrics/eval_loss"))
    values = [float(line.split()[1]) for line in stored.read_text().splitlines()]
    assert values[-1] == pytest.approx(results["metrics"]["eval_loss"])
    folder = stored.parent.parent / "artifacts"
    assert "objective: clm" in (folder / "recipe.yaml").read_text() and len(list(folder.glob("samples/*.jsonl"))) == 2
    while mlflow.active_run():
        mlflow.end_run()


def test_trackio_has_figures_recipe_and_samples(material: Path):
    pytest.importorskip("trackio")
    flags = ["-L", "32", "--val-split", "0.1", "--max-steps", "6", "--eval-every", "3", "--samples", "2", "-o", "run"]
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "clm",
        *map(str, scratch("gpt2")),
        "-d",
        str(material / "text.jsonl"),
        *flags,
    ]
    folder = str(Path("board").absolute())  # read when trackio is imported
    subprocess.run([*command, "--report-to", "trackio"], env={**os.environ, "TRACKIO_DIR": folder}, check=True)
    evaluations = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    found = stored(Path("board/huggingface.db"))
    values = {line["train/global_step"]: line["eval/loss"] for line in found["metrics"] if "eval/loss" in line}
    assert values == pytest.approx({line["step"]: line["eval_loss"] for line in evaluations if "eval_loss" in line})
    assert values[6] == pytest.approx(json.loads(Path("run/results.json").read_text())["metrics"]["eval_loss"])
    assert "objective: clm" in found["configs"][-1]["recipe"]
    assert [line["train/global_step"] for line in found["metrics"] if "samples" in line] == [3, 6]


def stored(database: Path) -> dict[str, list[dict]]:
    """The documents that trackio keeps, by table."""
    with closing(sqlite3.connect(database)) as connection:
        columns = {"metrics": "metrics", "configs": "config"}
        return {
            table: [json.loads(row[0]) for row in connection.execute(f"select {column} from {table} order by id")]
            for table, column in columns.items()
        }


def test_a_tracker_that_is_missing_is_refused_before_work(material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run", "--report-to", "clearml")
    assert outcome.code == 2 and "clearml is not installed" in outcome.err and not Path("run").exists()
