"""A group of processes that train together ends together: what its launcher and its processes know of each other.

The launcher makes a folder and names it in the environment. A process that fails writes its message there, and the
launcher prints the message that explains the end. In each process a thread watches: if the launcher dies, the process stops
with a checkpoint; if another process fails, it ends at once, because torch's launcher sends SIGTERM then and this process
may be waiting for the failed one in native code, where no handler of Python runs.
"""

import atexit
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lmtrain.runtime.files import atomic_write

if TYPE_CHECKING:
    from psutil import Process

FOLDER = "_LMTRAIN_GROUP"
"""Names the folder of the group, in the environment of its processes."""

STOP, FORCE, RUN, LOG = "stop", "force", "run.json", "launcher.log"
"""Files in it: a signal asked for the end, a second one for an end at once; the run; what torch's launcher logs."""

FAILED = "failed-"
"""The start of the names of the files in which processes note how they failed."""

PATIENCE = 600.0
"""Seconds that a process may take to stop with a checkpoint."""
POLL = 0.5
GRACE = 8.0
"""Seconds that processes have to end when another has failed."""

OWN, PEER, TIMEOUT = "own", "peer", "timeout"
"""Why a process failed: by itself, because another process was gone, or because another did not answer."""

SIGNS = {
    TIMEOUT: ("Timed out waiting", "timed out waiting", "Timeout(ms)=", "Wait timeout"),
    PEER: (
        "gloo/transport",
        "Connection closed by peer",
        "Connection reset by peer",
        "NCCL",
        "TCPStore",
        "Broken pipe",
    ),
}
"""Parts of the messages of torch.distributed, by cause; an error may have signs of both."""


@dataclass(frozen=True)
class Failure:
    """How a process of the group failed."""

    rank: int
    message: str
    exit_code: int
    traceback: str = ""
    """Of an error that is not the user's."""
    cause: str = OWN
    time: float = 0.0
    attempt: int = 0
    """How often the processes had been started again."""


# --- in the launcher -------------------------------------------------------------------------------------------------


@contextmanager
def launching() -> Iterator[Path]:
    """The folder of a new group, named in the environment; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lmtrain-group-"))
    (folder / str(os.getpid())).touch()
    os.environ[FOLDER] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


def ask_to_stop(folder: Path) -> None:
    """Note that a signal asked for the end; the second time, that it asked for an end at once."""
    (folder / (FORCE if (folder / STOP).exists() else STOP)).touch()


def end_the_rest(folder: Path, patience: float, give_up: Callable[[], None]) -> None:
    """Start a thread that kills the processes that are left GRACE seconds after one has failed: one that is stopped or
    waits in native code does not end by itself, and torch's launcher gives it half a minute.

    `give_up` is called where no others have started `patience` seconds later: torch's launcher waits for a host that it
    cannot reach as long as the system keeps the connection.
    """

    def watch_failures() -> None:
        seen = 0
        while True:
            time.sleep(POLL)
            if len(found := [*folder.glob(f"{FAILED}*")]) == seen or (folder / STOP).exists():
                continue
            left = _running()  # not those of the next attempt
            time.sleep(GRACE)
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            seen = len(found)
            deadline = time.monotonic() + patience + GRACE
            while time.monotonic() < deadline and not _running():
                time.sleep(POLL)
            if not _running():
                give_up()

    import psutil

    threading.Thread(target=watch_failures, daemon=True).start()


def _running() -> list["Process"]:
    """The processes that this one has started and that have not ended."""
    import psutil

    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def failures(folder: Path) -> list[Failure]:
    """The failures that processes have noted in the last attempt, the first one first."""
    found = []
    for file in folder.glob(f"{FAILED}*"):
        with suppress(OSError, ValueError, TypeError):
            found.append(Failure(**json.loads(file.read_text(encoding="utf-8"))))
    last = max((failure.attempt for failure in found), default=0)
    return sorted((failure for failure in found if failure.attempt == last), key=lambda failure: failure.time)


def run_of(folder: Path) -> tuple[Path | None, str]:
    """(the run folder, the command that resumes the run); None and the empty string before the run folder exists."""
    with suppress(OSError, ValueError):
        path, command = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return Path(path), command
    return None, ""


# --- in a process of the group ---------------------------------------------------------------------------------------


def is_member() -> bool:
    """Whether lmtrain's launcher started this process."""
    return FOLDER in os.environ


def attempt() -> int:
    """How often torch's launcher has started the processes again (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def report(message: str, exit_code: int, traceback: str = "") -> None:
    """Tell the launcher why this process fails."""
    failure = Failure(_rank(), message, exit_code, traceback, cause_of(traceback), time.time(), attempt())
    name = f"{FAILED}{failure.attempt}-{failure.rank}.json"
    with suppress(OSError), atomic_write(Path(os.environ[FOLDER], name)) as stream:
        stream.write(json.dumps(asdict(failure)))


def note_run(path: Path, command: str) -> None:
    """Tell the launcher where the run is saved, and which command resumes it."""
    if is_member():
        with suppress(OSError), atomic_write(Path(os.environ[FOLDER], RUN)) as stream:
            stream.write(json.dumps([str(path), command]))


def leave(code: object) -> NoReturn:
    """End this process, one of several, without taking the interpreter down in peace: torch's threads may abort that."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def cause_of(text: str) -> str:
    """Why a process failed, by the text of its error."""
    return next((cause for cause, signs in SIGNS.items() if any(sign in text for sign in signs)), OWN)


def watch() -> None:
    """Start the thread that ends this process with its group. Does nothing outside a group."""
    if is_member() and threading.current_thread() is threading.main_thread():
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not this process's
        threading.Thread(target=_watch, args=(Path(os.environ[FOLDER]), reader), daemon=True).start()


def _watch(folder: Path, signals: int) -> None:
    launcher = next((int(file.name) for file in folder.iterdir() if file.name.isdigit()), os.getppid())
    parent = os.getppid()
    while True:
        ready, _, _ = select.select([signals], [], [], POLL)
        if ready and signal.SIGTERM in os.read(signals, 64) and not (folder / STOP).exists() and _is_alive(launcher):
            os._exit(128 + signal.SIGTERM)  # another process failed
        if (folder / FORCE).exists():
            os._exit(128 + signal.SIGTERM)
        if os.getppid() != parent or not _is_alive(launcher):
            os.kill(os.getpid(), signal.SIGTERM)  # stops with a checkpoint, as the other processes do
            time.sleep(PATIENCE)
            os._exit(128 + signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _rank() -> int:
    return int(os.environ.get("RANK") or 0)
