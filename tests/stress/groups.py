"""Groups of processes that are killed, stopped and cut off, on one host and on two, and what each run comes to.

`python tests/stress/groups.py [PROGRAM ...]` runs the programs and writes their sections of benchmarks/groups.md (groups.json holds
all). Hosts are network namespaces joined by a veth pair, so `hosts` needs root and `ip`.

A trial is right if the run, resumed, ends in the same weights (sha256), losses and figures as one that was left in peace.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
STRESS = ROOT / "tests" / "stress"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(STRESS)]

import trials
from conftest import outcome_of
from tiny_models import TOKENIZERS, WITHOUT_DROPOUT, as_option

from lmtrain.runs.checkpoint import step_of

SITE = "import rank_fault\nrank_fault.install()\n"
STEPS, SAVES = 400, 20
Row = list[str]


class Run:
    """`lmtrain` and the processes that it starts, on one host."""

    def __init__(self, folder: Path, flags: Sequence[str], host: str | None = None, fault: str | None = None):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}", "PYTHONFAULTHANDLER": "1"}
        if fault:
            (folder / "site").mkdir(exist_ok=True)
            (folder / "site" / "sitecustomize.py").write_text(SITE)
            path = [str(folder / "site"), str(STRESS), str(ROOT), str(ROOT / "tests")]
            variables |= {"PYTHONPATH": os.pathsep.join(path), "RANK_FAULT": fault}
        inside = ["ip", "netns", "exec", host] if host else []
        self.folder, self.log = folder, folder / f"{host or 'log'}.txt"
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "lmtrain", *map(str, flags)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            env=variables,
            start_new_session=True,
        )

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        with suppress(psutil.Error):
            return [p for p in psutil.Process(self.process.pid).children(recursive=True) if "lmtrain" in p.cmdline()]
        return []

    def training(self, step: int) -> "Run":
        """Wait for a checkpoint of that step or a later one."""
        end = time.monotonic() + 120
        while max(map(step_of, (self.folder / "run/checkpoints").glob("checkpoint-*")), default=0) < step:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return self

    def wait(self, seconds: float = 180) -> tuple[int, str]:
        """(exit code, the sentence that it ends with); nothing that it started may be left."""
        left = self.workers()
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(left, timeout=20)
        for process in alive:
            process.kill()
        assert not alive, f"{len(alive)} processes are left"
        said = [
            line.removeprefix("lmtrain: ")
            for line in self.log.read_text().splitlines()
            if line.startswith("lmtrain: ")
        ]
        return code, next((line for line in said if not line.startswith(" ")), "") if code else "completed"

    def kill(self) -> None:
        """Everything on this host at once, as a power failure does."""
        for process in [*self.workers(), psutil.Process(self.process.pid)]:
            with suppress(psutil.Error):
                process.kill()


def command(*flags: str, steps: int = STEPS) -> list[str]:
    _, sizes = WITHOUT_DROPOUT["gpt2"]
    own = ["clm", "--model", "gpt2", "--from-scratch", "--model-config", as_option(sizes), "--data", "text.txt"]
    own += [
        "--tokenizer",
        TOKENIZERS["clm"],
        "-L",
        "16",
        "-b",
        "2",
        "--val-split",
        "0.2",
        "--samples",
        "0",
        "-o",
        "run",
    ]
    own += ["--max-steps", str(steps), "--save-every", str(SAVES), "--eval-every", "100", "--log-every", "20"]
    return [*own, "--dist-timeout", "20s", *flags]


def write_data(folder: Path) -> None:
    words = Counter(
        ["the", "cat", "dog", "bird", "sees", "finds", "likes", "a", "small", "red", "old", "house", "tree", "river"]
    )
    draw = random.Random(1)
    (folder / "text.txt").write_text("\n\n".join(" ".join(draw.choices(list(words), k=12)) for _ in range(300)))


@contextmanager
def places(*names: str) -> Iterator[list[Path]]:
    """Folders with the data."""
    with tempfile.TemporaryDirectory() as made:
        for name in names:
            (Path(made) / name).mkdir()
            write_data(Path(made) / name)
        yield [Path(made) / name for name in names]


def whole(folder: Path, flags: Sequence[str]) -> Any:
    """The outcome of a run left in peace."""
    run = Run(folder, flags)
    code, last = run.wait()
    assert code == 0, last
    return outcome_of(folder / "run")


def resumed(folder: Path, flags: Sequence[str]) -> Any:
    run = Run(folder, [*flags, "--resume", "auto"])
    code, _ = run.wait()
    assert code == 0, run.log.read_text()[-3000:]
    return outcome_of(folder / "run")


# --- one host --------------------------------------------------------------------------------------------------------
def kills(count: int = 30) -> list[Row]:
    """SIGKILL at a random moment, of a rank, of the launcher or of the whole host."""
    rows = []
    for shard in ("none", "fsdp2"):
        flags, lost, when = command("--num-processes", "2", "--shard", shard), [], random.Random(7)
        with places("whole", "trial") as (reference, place):
            began = time.monotonic()
            expected = whole(reference, flags)
            length = time.monotonic() - began
            for number in range(count // 2):
                shutil.rmtree(place / "run", ignore_errors=True)
                run = Run(place, flags)
                time.sleep(when.uniform(0.3, length))
                victim = ("rank 0", "rank 1", "launcher", "host")[number % 4]
                workers = run.workers()
                with suppress(psutil.Error):
                    if victim == "host":
                        run.kill()
                    elif victim == "launcher" or len(workers) < 2:
                        run.process.kill()
                    else:
                        workers[int(victim[-1])].kill()
                run.wait()
                if resumed(place, flags) != expected:
                    lost.append(f"{number} ({victim})")
        rows.append([f"SIGKILL, --shard {shard}", f"{count // 2}", ", ".join(lost) or "none"])
    return rows


def saves() -> list[Row]:
    """SIGKILL of a rank at operations on files of a sharded save."""
    flags = command("--num-processes", "2", "--shard", "fsdp2", "--keep", "1", steps=60)
    rows = []
    with places("whole", "trial") as (reference, place):
        expected = whole(reference, flags)
        for rank in (0, 1):
            shutil.rmtree(place / "run", ignore_errors=True)
            log = place / f"points-{rank}"
            code, last = Run(place, flags, fault=f"{rank}:0:points={log}").wait()
            assert code == 0, last
            found, lost = trials.points(log, 2), []
            for point in found:
                shutil.rmtree(place / "run", ignore_errors=True)
                code, _ = Run(place, flags, fault=f"{rank}:{point.number}:dies").wait()
                if code != 137 or resumed(place, flags) != expected:
                    lost.append(f"{point.operation} {point.name} (exit code {code})")
            rows.append(
                [
                    f"rank {rank} dies at one of the {len(found)} operations of a save",
                    f"{len(found)}",
                    ", ".join(lost) or "none",
                ]
            )
    return rows


ENDS: dict[str, tuple[str | None, str, int]] = {
    "a rank raises": ("1:150:raise", "", 1),
    "a rank refuses": ("1:150:refuse", "", 6),
    "a rank exits": ("1:150:exit", "", 9),
    "a rank is killed": ("1:150:kill", "", 137),
    "a rank hangs (timeout 20 s)": ("1:150:hang", "", 1),
    "a rank is stopped (timeout 20 s)": ("1:150:freeze", "", 1),
    "SIGTERM to the launcher": (None, "TERM", 143),
    "SIGKILL to the launcher": (None, "KILL", -9),
    "Ctrl-C to the terminal's group": (None, "INT", 130),
}
"""Name -> (fault, signal, exit code)."""


def ends() -> list[Row]:
    """How long a group takes to end, and with what."""
    rows = []
    for name, (fault, number, expected) in ENDS.items():
        with places("place") as (place,):
            run = Run(place, command("--num-processes", "2", steps=20000), fault=fault)
            run.training(100)
            began = time.monotonic()
            if number == "INT":
                os.killpg(run.process.pid, signal.SIGINT)
            elif number:
                run.process.send_signal(getattr(signal, f"SIG{number}"))
            code, last = run.wait()
            seconds = time.monotonic() - began
            text = run.log.read_text()
            clean = not re.search(r"elastic|ChildFailed|gloo/", text) and text.count("Traceback") == (
                fault or ""
            ).count("raise")
            steps = max(map(step_of, (place / "run/checkpoints").glob("checkpoint-*")))
            code_after, _ = Run(place, [*command("--num-processes", "2", steps=steps + 1), "--resume", "auto"]).wait()
            right = code == expected and clean and code_after == 0
            rows.append(
                [
                    name,
                    f"{seconds:.1f} s",
                    f"{code}",
                    last.replace("|", "/"),
                    "yes" if right else "**no**",
                ]
            )
    return rows


# --- two hosts -------------------------------------------------------------------------------------------------------
HOSTS, ADDRESSES, DEVICES = ("lmhost0", "lmhost1"), ("10.77.0.1", "10.77.0.2"), ("lmveth0", "lmveth1")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """Two hosts: network namespaces joined by a pair of devices."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)
        ip("netns", "add", host)
    ip("link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
    for host, address, device in zip(HOSTS, ADDRESSES, DEVICES, strict=True):
        ip("link", "set", device, "netns", host)
        ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
        ip("-n", host, "link", "set", device, "up")
        ip("-n", host, "link", "set", "lo", "up")
    try:
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def cut(seconds: float | None) -> None:
    """Cut the cable; for good, or for some seconds."""
    ip("-n", HOSTS[1], "link", "set", DEVICES[1], "down")
    if seconds is not None:
        time.sleep(seconds)
        mend()


def mend() -> None:
    ip("-n", HOSTS[1], "link", "set", DEVICES[1], "up")


def on_hosts(folders: Sequence[Path], flags: Sequence[str]) -> list[Run]:
    meeting = ["--nodes", "2", "--rendezvous", f"{ADDRESSES[0]}:29544"]
    return [
        Run(folder, [*flags, *meeting, "--node-rank", str(number)], host)
        for number, (folder, host) in enumerate(zip(folders, HOSTS, strict=True))
    ]


def hosts() -> list[Row]:
    flags, rows = command(steps=1500), []

    def row(name: str, began: float, runs: Sequence[Run], right: bool) -> None:
        codes = ", ".join(str(run.wait()[0]) for run in runs)
        rows.append([name, f"{time.monotonic() - began:.1f} s", codes, "yes" if right else "**no**"])

    with network(), places("a", "b", "shared") as (a, b, shared):
        began = time.monotonic()
        runs = on_hosts([shared, shared], flags)
        [run.wait() for run in runs]
        expected = outcome_of(shared / "run")
        row("shared folder", began, runs, True)

        began = time.monotonic()
        runs = on_hosts([a, b], flags)
        [run.wait() for run in runs]
        row("separate folders", began, runs, outcome_of(a / "run") == expected and not (b / "run").exists())

        shutil.rmtree(a / "run")
        began = time.monotonic()
        runs = on_hosts([a, b], flags)
        runs[0].training(100)
        cut(5)
        [run.wait() for run in runs]
        row("cable cut for 5 s", began, runs, outcome_of(a / "run") == expected)

        shutil.rmtree(a / "run")
        runs = on_hosts([a, b], flags)
        runs[0].training(100)
        began = time.monotonic()
        cut(None)
        codes = [run.wait()[0] for run in runs]
        row("cable cut for good (timeout 20 s)", began, runs, codes == [1, 1])
        mend()
        began = time.monotonic()
        runs = on_hosts([a, b], [*flags, "--resume", "auto"])
        [run.wait() for run in runs]
        row("the same commands, resumed", began, runs, outcome_of(a / "run") == expected)

        shutil.rmtree(a / "run")
        again = [*flags, "--max-restarts", "1", "--dist-timeout", "60s"]
        began = time.monotonic()
        runs = on_hosts([a, b], again)
        runs[0].training(100)
        runs[1].kill()
        runs[1].wait()
        meeting = ["--nodes", "2", "--rendezvous", f"{ADDRESSES[0]}:29544", "--node-rank", "1"]
        runs[1] = Run(b, [*again, *meeting], HOSTS[1])
        [run.wait() for run in runs]
        row("host 1 killed and started again, --max-restarts 1", began, runs, outcome_of(a / "run") == expected)
    return rows


SECTIONS: dict[str, tuple[Any, str, Row]] = {
    "kills": (kills, "Killed at random moments", ["what", "trials", "lost runs"]),
    "saves": (saves, "Killed during a sharded save", ["what", "trials", "lost runs"]),
    "ends": (
        ends,
        "How a group ends",
        ["what happens", "ends after", "exit code", "sentence", "as it must, resumes"],
    ),
    "hosts": (hosts, "Two hosts", ["what happens", "took", "exit codes", "as it must"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", choices=[*SECTIONS, []], default=[])
    store = ROOT / "benchmarks" / "groups.json"
    found = json.loads(store.read_text()) if store.exists() else {}
    for name in parser.parse_args().programs or SECTIONS:
        found[name] = SECTIONS[name][0]()
        for cells in found[name]:
            print("| " + " | ".join(cells) + " |", flush=True)
        store.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Groups of processes\n\nWritten by `python tests/stress/groups.py`: real processes on 2 CPU cores, gloo.\n"
    ]
    for name, (_, title, head) in SECTIONS.items():
        if name not in found:
            continue
        rows = [head, ["---"] * len(head), *found[name]]
        lines += [f"\n## {title}\n\n", *("| " + " | ".join(cells) + " |\n" for cells in rows)]
    (ROOT / "benchmarks" / "groups.md").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
