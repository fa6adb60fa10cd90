"""Atomic writes: a file or folder is complete or absent, and no temporary file is left."""

import os
import stat
from pathlib import Path

import pytest

from lmtrain.errors import StorageError
from lmtrain.runs import checkpoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.files import atomic_folder, atomic_write, write_lines


def test_atomic_write_replaces_the_file_only_at_the_end(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with atomic_write(path) as stream:
        stream.write("new")
        assert path.read_text() == "old"
        assert (tmp_path / ".results.json.part").exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_appears_with_all_its_files(tmp_path: Path):
    (tmp_path / ".merged.part").mkdir()
    (tmp_path / ".merged.part/stale").touch()
    with atomic_folder(tmp_path / "merged") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "merged").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["merged", "merged/config.json"]


def test_atomic_folder_is_absent_after_a_failure(tmp_path: Path):
    with pytest.raises(ValueError, match="half"), atomic_folder(tmp_path / "merged", suffix="7") as folder:
        assert folder.name == ".merged.7"
        raise ValueError("half")
    assert not list(tmp_path.iterdir())


def test_write_lines_reports_a_missing_folder_as_a_storage_error(tmp_path: Path):
    with pytest.raises(StorageError, match="another --output-dir"):
        write_lines(tmp_path / "missing/predictions.jsonl", [{"text": "a"}])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_files_have_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "results.json") as stream:
            stream.write("{}")
        with atomic_folder(tmp_path / "merged") as merged:
            private(merged / "model.safetensors")
        run = RunFolder(tmp_path)
        with run.model_files() as aside:
            private(aside / "model.safetensors")
        saving = checkpoint.begin(checkpoint.path_of(run.checkpoints, 3))
        private(saving / "model.safetensors")
        checkpoint.publish(saving, checkpoint.path_of(run.checkpoints, 3), {})
    finally:
        os.umask(before)
    paths = list(tmp_path.rglob("*"))
    assert {mode(path) for path in paths if path.is_file()} == {0o666 & ~umask}
    assert {mode(path) for path in paths if path.is_dir()} == {0o777 & ~umask}
    assert len([path for path in paths if path.is_file()]) == 5


def test_file_that_replaces_a_private_one_stays_private(tmp_path: Path):
    for name in ("results.json", "model.safetensors"):
        private(tmp_path / name)
    with atomic_write(tmp_path / "results.json") as stream:
        stream.write("{}")
    with RunFolder(tmp_path).model_files() as aside:
        (aside / "model.safetensors").write_text("")
    assert [mode(path) for path in tmp_path.iterdir()] == [0o600, 0o600]


def private(path: Path) -> None:
    """A file as safetensors writes it."""
    path.touch(mode=0o600)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
