"""Checkpoints are atomic: damage is detected, rotation keeps the best and newest, a full disk ends with one message."""

import errno
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, outcome_of, scratch, trained

from lmtrain.runs import checkpoint
from lmtrain.training import training_state

FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "resume.json",
    "resume.safetensors",
    "tokenizer.json",
    "trainer_state.json",
)


def command(material: Path, *flags: Any) -> list[Any]:
    return [
        "clm",
        *scratch("gpt2"),
        "--no-packing",
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "--save-every",
        2,
        "--val-split",
        0.1,
        "--samples",
        0,
        "--log-every",
        1,
        "--max-steps",
        6,
        "--lr",
        1e-3,
        *flags,
    ]


@pytest.fixture(scope="module")
def saved(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 2, 4 and 6 of a run."""
    folder = tmp_path_factory.mktemp("saved")
    trained(*command(material, "--keep", 9, "-o", folder / "run"))
    return folder / "run/checkpoints"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "checkpoint-4", tmp_path / "checkpoint-4"))


def test_checkpoint_contains_no_pickle(saved: Path):
    names = {path.name for path in (saved / "checkpoint-4").iterdir()}
    assert set(FILES) <= names
    assert not {path.suffix for path in (saved / "checkpoint-4").iterdir()} - {".json", ".safetensors"}


def test_flipped_bits_are_detected(copy: Path):
    chance = random.Random(5)
    files = sorted(copy.iterdir())
    for _ in range(100):
        file = chance.choice(files)
        content = bytearray(file.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        before = file.read_bytes()
        file.write_bytes(content)
        assert file.name in (checkpoint.damage(copy) or ""), (file.name, place)
        file.write_bytes(before)
    assert checkpoint.damage(copy) is None


@pytest.mark.parametrize("name", FILES)
def test_missing_empty_truncated_or_swapped_files_are_detected(name: str, copy: Path, saved: Path):
    file = copy / name
    whole = file.read_bytes()
    swapped = (saved / "checkpoint-6" / name).read_bytes()
    for content in (None, b"", whole[: len(whole) // 2], *([swapped] if swapped != whole else [])):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        assert checkpoint.damage(copy), (name, content)
    file.write_bytes(whole)
    assert checkpoint.damage(copy) is None


def test_additional_files_and_other_formats_are_detected(copy: Path):
    (copy / "pytorch_model.bin").write_bytes(b"x")
    assert checkpoint.damage(copy) == "pytorch_model.bin does not belong to it"
    (copy / "pytorch_model.bin").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest.pop("seal")
    (copy / "manifest.json").write_text(checkpoint._sealed({**manifest, "format": 99}))
    assert "in a format that" in (checkpoint.damage(copy) or "")


def test_rotation_keeps_the_best_and_the_newest_and_removes_later_steps(tmp_path: Path):
    def there() -> list[int]:
        return sorted(checkpoint.step_of(path) for path in tmp_path.iterdir())

    for steps, newest, best, keep, left in [
        ([2, 4, 6], 6, None, 2, [4, 6]),
        ([2, 4, 6], 6, 2, 2, [2, 6]),
        ([2, 4, 6], 6, 6, 2, [4, 6]),
        ([2, 4, 6], 6, 2, 1, [2, 6]),
        ([2, 4, 6], 6, None, 1, [6]),
        ([2, 3, 4, 6], 3, 2, 9, [2, 3]),  # resumed from before step 4
    ]:
        for step in steps:
            checkpoint.path_of(tmp_path, step).mkdir()
        (tmp_path / "checkpoint-2-mine").mkdir()
        checkpoint.rotate(tmp_path, newest, best, keep)
        assert there() == [-1, *left]  # other folders are left alone
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_clean_up_removes_temporary_folders_and_restores_a_replaced_checkpoint(tmp_path: Path):
    for name in (".saving-6", ".removing-2", ".replaced-4", ".replaced-5", "checkpoint-5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    checkpoint.clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert (tmp_path / "checkpoint-5/file").read_text() == "checkpoint-5"


def test_training_state_round_trips_with_values_and_types(tmp_path: Path):
    import numpy as np
    import torch

    whole = {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(3, 2).T}},
            "groups": [(0.9, 1e-300)],
        },
        "random": training_state.random_state(),
        "none": None,
        "big": 1 << 70,
        "flag": True,
    }
    training_state.save(tmp_path, whole)
    read = training_state.load(tmp_path)
    assert torch.equal(read["optimizer"]["state"][0]["exp_avg"], whole["optimizer"]["state"][0]["exp_avg"])
    assert read["optimizer"]["groups"] == [(0.9, 1e-300)]
    assert (read["none"], read["big"], read["flag"]) == (None, 1 << 70, True)
    drawn = (torch.rand(1), np.random.rand())
    training_state.set_random_state(read["random"])
    assert (torch.rand(1), np.random.rand()) == drawn


@pytest.mark.parametrize(
    ("place", "error"), [("seal", errno.ENOSPC), ("publish", errno.EDQUOT), ("begin", errno.EROFS)]
)
def test_full_disk_ends_the_run_with_one_message_and_keeps_the_last_checkpoint(
    place: str, error: int, material: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(*command(material, "-o", "whole"))
    with monkeypatch.context() as patched:
        made, times = getattr(checkpoint, place), []

        def full(*arguments: Any) -> Any:
            times.append(1)
            if len(times) == 2:
                raise OSError(error, "no room")
            return made(*arguments)

        patched.setattr(checkpoint, place, full)
        outcome = lmtrain(*command(material), "--quiet")
    assert outcome.code == 7
    assert "run: no room;" in outcome.err.replace("\n", " ")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["checkpoint-2"]
    assert checkpoint.damage(Path("run/checkpoints/checkpoint-2")) is None
    assert outcome.err.count("\n") <= 2
    trained(*command(material), "--resume", "auto")
    assert outcome_of("run") == outcome_of("whole")


def test_too_little_disk_space_is_reported_before_training(material: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    outcome = lmtrain(*command(material))
    assert outcome.code == 7
    assert "1 MB free, but the run needs space for 4 checkpoints of 0 MB" in outcome.err.replace("\n", " ")
    assert not Path("run").exists()


def test_log_line_that_cannot_be_written_is_retried(material: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.runs.run_folder import RunFolder

    append, times = RunFolder.append, []

    def full(*arguments: Any) -> None:
        times.append(1)
        if len(times) in (2, 3):
            raise OSError(errno.ENOSPC, "no room")
        append(*arguments)

    monkeypatch.setattr(RunFolder, "append", full)
    outcome = lmtrain(*command(material))
    assert outcome.code == 0
    assert outcome.err.count("the line will be written with the next one") == 1
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 6]


def test_preflight_does_not_change_the_run(material: Path):
    trained(*command(material, "-o", "without"))
    outcome = lmtrain(*command(material, "--preflight"))
    assert outcome.code == 0
    assert re.search(r"preflight: \d × \d+ forward and backward", outcome.err)
    assert outcome_of("run") == outcome_of("without")
    assert (
        json.loads(Path("run/results.json").read_text())["train"]["tokens_seen"]
        == (json.loads(Path("without/results.json").read_text())["train"]["tokens_seen"])
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_state_with_a_number_that_is_not_finite_is_standard_json(value: float, tmp_path: Path):
    training_state.save(tmp_path, {"loss": value, "more": [1.5, (value, 2)]})
    json.loads((tmp_path / training_state.TREE).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert repr(training_state.load(tmp_path)) == repr({"loss": value, "more": [1.5, (value, 2)]})
