"""Runs killed at file operations of a save, in processes of their own; endurance.py tries every operation."""

from pathlib import Path
from typing import Any

import pytest
import trials
from conftest import outcome_of, scratch

from lmtrain.runs import checkpoint

KILLED_AT = 8
"""Operations that are tried, spread over a save: writes, halves of writes, fsyncs, renames, removals."""


@pytest.fixture(scope="module")
def command(material: Path) -> list[Any]:
    return [
        "clm",
        *scratch("gpt2"),
        "--no-packing",
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "-b",
        8,
        "--max-steps",
        6,
        "--save-every",
        2,
        "--keep",
        1,
        "--log-every",
        1,
        "--val-split",
        0.1,
        "--eval-every",
        3,
        "--samples",
        0,
        "--no-cache",
        "--quiet",
    ]


@pytest.fixture(scope="module")
def whole(command: list[Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[trials.Point]]:
    """(weights, losses and metrics of the uninterrupted run, the operations of its second save)."""
    folder = tmp_path_factory.mktemp("whole")
    done = trials.run(command, folder, trials.dies_at("run", None, folder / "log"))
    assert done.code == 0, done.err
    return outcome_of(folder / "run"), trials.points(folder / "log", 2)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(KILLED_AT))
def test_a_run_killed_during_a_save_resumes_to_the_same_end(
    part: int, command: list[Any], whole: tuple[Any, list[trials.Point]], tmp_path: Path
):
    expected, points = whole
    point = points[part * (len(points) - 1) // (KILLED_AT - 1)]
    assert trials.run(command, tmp_path, trials.dies_at("run", point.number)).code == -9
    for path in (tmp_path / "run/checkpoints").glob("checkpoint-*"):
        assert checkpoint.damage(path) is None, point
    assert trials.run([*command, "--resume", "auto"], tmp_path).code == 0, point
    assert outcome_of(tmp_path / "run") == expected, point
    assert not list((tmp_path / "run").rglob(".*")), point
