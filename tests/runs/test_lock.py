"""One run folder, one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import lmtrain, scratch

from lmtrain.errors import StorageError
from lmtrain.runs import lock

HOLD = "import sys; from pathlib import Path; from lmtrain.runs import lock\nwith lock.held(Path('run')):\n    print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def owner():
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_run_is_refused_and_names_the_owner(owner: subprocess.Popen, material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run", "--overwrite")
    assert outcome.code == 7
    assert f"in use by process {owner.pid} on {socket.gethostname()}" in outcome.err.replace("\n", " ")


def test_lock_of_a_killed_process_is_released(owner: subprocess.Popen):
    with pytest.raises(StorageError), lock.held(Path("run")):
        pass
    owner.kill()
    owner.wait()
    with lock.held(Path("run")):
        assert str(os.getpid()) in Path("run/.lock").read_text()
    assert not Path("run/.lock").exists()


def test_folder_is_removed_if_nothing_was_written():
    with lock.held(Path("new/deep/run")):
        assert Path("new/deep/run").is_dir()
    assert not Path("new").exists()
