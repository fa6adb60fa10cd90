"""A group of processes ends together: in bounded time, with one sentence and the exit code of the process that failed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import outcome_of, scratch

from lmtrain.runtime import group

pytestmark = pytest.mark.slow

FAULTY = "import rank_fault\nrank_fault.install()\n"
STRESS = Path(__file__).parent.parent / "stress"


class Group:
    """`lmtrain clm` in several processes of its own."""

    def __init__(self, material: Path, *flags: object, fault: str | None = None, processes: int = 2):
        environment = dict(os.environ)
        if fault:
            Path("site").mkdir()
            Path("site/sitecustomize.py").write_text(FAULTY)
            path = [str(Path("site").absolute()), str(STRESS), os.environ.get("PYTHONPATH", "")]
            environment |= {"PYTHONPATH": os.pathsep.join(path), "RANK_FAULT": fault}
        given = ["clm", *scratch("gpt2"), "--data", str(material / "prose.txt"), "-L", "16", "-b", "2", "-o", "run"]
        given += ["--num-processes", str(processes), "--save-every", "1", "--samples", "0", *map(str, flags)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.workers: list[psutil.Process] = []

    def training(self) -> "Group":
        """Wait until the first checkpoint is there."""
        end = time.monotonic() + 120
        while not any(Path("run/checkpoints").glob("checkpoint-*")):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        self.workers = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def end(self, within: float) -> tuple[int, str]:
        """(exit code, standard error); no process may be left."""
        _, err = self.process.communicate(timeout=within)
        _, alive = psutil.wait_procs(self.workers, timeout=within)
        assert not alive, err
        return self.process.returncode, err


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("raise", 1, "lmtrain: process 1: RuntimeError: a fault of this process alone"),
        ("refuse", 6, "lmtrain: process 1: the loss of step 2 is not a finite number"),
        ("exit", 9, r"lmtrain: process 1 ended with exit code 9; resume with\nlmtrain:   lmtrain run .*--resume auto"),
        (
            "kill",
            137,
            r"lmtrain: process 1 was killed by SIGKILL, perhaps because memory ran out; resume with\n.* -o ",
        ),
    ],
)
def test_a_process_that_fails_ends_the_others(kind: str, code: int, message: str, material: Path):
    running = Group(material, "--max-steps", 400, fault=f"1:30:{kind}").training()
    found, err = running.end(within=60)
    assert found == code, err
    assert re.search(message + "[^\n]*$", err.strip()), err
    assert err.count("Traceback") == (1 if kind == "raise" else 0)
    assert not re.search(r"elastic|gloo|ChildFailed", err), err


@pytest.mark.parametrize("kind", ["hang", "freeze"])
def test_a_process_that_hangs_is_named_after_the_timeout(kind: str, material: Path):
    running = Group(material, "--max-steps", 400, "--dist-timeout", "5s", fault=f"1:30:{kind}").training()
    code, err = running.end(within=60)
    assert code == 1 and "lmtrain: process 1 did not answer within --dist-timeout" in err, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_launcher(number: int, material: Path):
    running = Group(material, "--max-steps", 4000).training()
    running.process.send_signal(number)
    code, err = running.end(within=60)
    assert code == (143 if number == signal.SIGTERM else -9), err
    assert len(list(Path("run/checkpoints").glob("checkpoint-*"))) <= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_one_checkpoint_and_says_how_to_resume(number: int, material: Path):
    running = Group(material, "--max-steps", 4000).training()
    if number == signal.SIGINT:  # a terminal sends it to all processes of the group
        os.killpg(running.process.pid, number)
    else:
        running.process.send_signal(number)
    code, err = running.end(within=60)
    assert code == 128 + number, err
    assert err.count("resume with") == 1 and last_line(err).endswith("-o run"), err


def test_a_signal_stops_a_long_generation_with_a_checkpoint(material: Path):
    """Untrained models do not end their outputs, so each evaluation takes longer than torch's launcher would wait."""
    given = ["seq2seq", *scratch("t5"), "--data", str(material / "pairs.jsonl"), "-o", "run", "--num-processes", "2"]
    given += [
        "--val-split",
        "0.5",
        "--num-beams",
        "4",
        "--max-new-tokens",
        "2000",
        "--samples",
        "0",
        "--max-steps",
        "40",
    ]
    given += ["--save-every", "1", "--eval-every", "2", "--metric", "bleu"]
    running = Group.__new__(Group)
    running.process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", *given], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    running.training()
    time.sleep(3)
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    code, err = running.end(within=60)
    assert code == 143 and "a checkpoint is saved; resume with" in err, err
    assert time.monotonic() - began < 25, err


def test_processes_that_work_by_themselves_agree_to_stop():
    from lmtrain.runtime import signals

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    reached = []
    with signals.handle_signals(), signals.deferred(lambda: None, alone=False):
        with signals.agreeing(bool):
            signals.check()
        interrupted()
        signals.check()  # outside, the others do not know
        with pytest.raises(signals.Stopped), signals.agreeing(lambda stopped: reached.append(stopped) or stopped):
            signals.check()
            reached.append("more work")
    assert reached == [True]
    with signals.handle_signals(), signals.deferred(lambda: None, alone=False):
        with pytest.raises(signals.Stopped), signals.agreeing(lambda stopped: True):  # another process stopped
            reached.append("all work")
        assert signals.received() == signal.SIGTERM
    assert reached == [True, "all work"]


@pytest.mark.parametrize(
    ("codes", "notes", "message", "code"),
    [
        ({0: -15, 1: -9}, [], "process 1 was killed by SIGKILL, perhaps because memory ran out", 137),
        ({0: 1, 1: -9}, [(0, group.PEER)], "process 1 was killed by SIGKILL, perhaps because memory ran out", 137),
        ({0: 143, 1: 9}, [], "process 1 ended with exit code 9", 9),
        ({0: 1, 1: -9}, [(0, group.TIMEOUT)], "process 1 did not answer within --dist-timeout", 1),
        ({0: 1, 1: 1}, [(0, group.PEER), (1, group.OWN)], "process 1: of rank 1", 1),
        ({0: 1, 1: 1}, [(0, group.PEER), (1, group.PEER)], "the connection between the processes broke", 1),
        ({1: -15}, [], "process 1 was killed by SIGTERM", 143),
    ],
)
def test_the_first_cause_explains_the_end(codes: dict, notes: list, message: str, code: int):
    from lmtrain.cli.launch import Ended, _explained

    for rank, cause in notes:
        failure = {"rank": rank, "message": f"of rank {rank}", "exit_code": 1, "cause": cause, "time": float(rank)}
        Path(f"failed-{rank}.json").write_text(json.dumps(failure))
    error = _explained(Path(), Ended(1, range(2), codes))
    assert (str(error), error.exit_code) == (message, code)


def test_processes_that_failed_start_again_from_the_newest_checkpoint(material: Path):
    running = Group(material, "--max-steps", 60, "--max-restarts", 1, fault="1:30:kill")
    code, err = running.end(within=120)
    assert code == 0, err
    assert "resuming from run/checkpoints/checkpoint-" in err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 60


def test_two_hosts_without_a_shared_folder_train_as_one_and_resume(material: Path):
    """Two launchers that know nothing of each other but the address where they meet."""

    def hosts(*flags: object) -> list[Group]:
        running = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for number in (0, 1):
            Path(f"host{number}").mkdir(exist_ok=True)
            with contextlib.chdir(f"host{number}"):
                meeting = ["--nodes", 2, "--node-rank", number, "--rendezvous", f"127.0.0.1:{port}"]
                running.append(Group(material, *meeting, *flags, processes=1))
        return running

    steps = ["--max-steps", 6, "--keep", 4, "--val-split", 0.2, "--dist-timeout", "60s"]
    for running in hosts(*steps):
        code, err = running.end(within=120)
        assert code == 0, err
    whole = outcome_of("host0/run")
    assert not Path("host1/run").exists()
    for name in ("results.json", "checkpoints/checkpoint-6", "checkpoints/checkpoint-5"):
        path = Path("host0/run", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for running in hosts(*steps, "--resume", "auto"):
        code, err = running.end(within=120)
        assert code == 0, err
    assert outcome_of("host0/run") == whole
