"""Run the same command again in several processes, under the distributed launcher."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from lmtrain.config.train import Run
from lmtrain.errors import LmtrainError, UsageError
from lmtrain.runtime import group, signals
from lmtrain.runtime.processes import is_launched

SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that torch's launcher gives the processes to stop with a checkpoint, before it kills them."""


BY_LAUNCHER = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of processes that the launcher has ended."""


class GroupFailed(LmtrainError):
    """A process of the group failed; the message is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ended:
    """How a group ended."""

    code: int
    processes: int = 0
    """The number of its processes; 0 if it is not known."""
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> exit code of a process that failed by itself; -N if signal N killed it."""


def wanted(run: Run) -> bool:
    return not is_launched() and ((run.num_processes or 1) > 1 or run.accelerate_config is not None)


def check_input(data: list[str]) -> None:
    """Raise UsageError for data from standard input, which processes cannot share."""
    from lmtrain.data.tables import STDIN, is_stdin

    if any(map(is_stdin, data)):
        raise UsageError(f"{STDIN} cannot be shared by several processes; save it to a file")


def relaunch(run: Run, data: list[str], arguments: list[str]) -> NoReturn:
    """Run `python -m lmtrain ARGUMENTS` in as many processes as the recipe wants, and exit.

    Raises UsageError for data from standard input, GroupFailed with the message and the exit code of the process that failed.
    """
    check_input(data)
    os.environ.setdefault(SHUTDOWN, str(int(group.PATIENCE)))
    with group.launching() as folder:
        if run.accelerate_config:
            ended = _accelerate(run.accelerate_config, folder, arguments)
        else:
            ended = _torchrun(run.num_processes or 1, folder, arguments)
        if ended.code:
            raise _explained(folder, ended)
    raise typer.Exit(0)


def _accelerate(config: str, folder: Path, arguments: list[str]) -> Ended:
    """Accelerate does not say which process failed."""
    if not Path(config).is_file():
        raise UsageError(f"--accelerate-config {config}: no such file; `accelerate config` writes one")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config]
    process = subprocess.Popen([sys.executable, *launcher, "-m", "lmtrain", *arguments])
    return Ended(signals.wait_forwarding(process, partial(group.ask_to_stop, folder)))


def _torchrun(processes: int, folder: Path, arguments: list[str]) -> Ended:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as distribute

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    # The launcher reports a failure with a page for every process; lmtrain prints one sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _log_to(folder / group.LOG)
    own = ["--standalone", "--nnodes", "1", "--nproc-per-node", str(processes), "--log-dir", str(folder / "torch")]
    own += ["--shutdown-timeout", os.environ[SHUTDOWN], "--signals-to-handle", "SIGHUP"]

    def stop(number: int, frame: FrameType | None) -> None:
        group.ask_to_stop(folder)
        raise SignalException(f"received signal {number}", signal.Signals(number))

    group.end_the_rest(folder)
    try:
        with signals.handled_by(stop):
            distribute(get_args_parser().parse_args([*own, "-m", "lmtrain", *arguments]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return Ended(next((code for code in codes.values() if code > 0), 1), processes, codes)
    except SignalException as error:
        return Ended(128 + error.sigval, processes)  # the processes have saved a checkpoint
    return Ended(0, processes)


def _log_to(file: Path) -> None:
    """Let all that torch's launcher logs go to a file."""
    handler = logging.FileHandler(file, delay=True)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


def _explained(folder: Path, ended: Ended) -> LmtrainError:
    """The failure that explains the end of the group: one of its own first, then a process that was killed or hangs."""
    noted = group.failures(folder)
    run, command = group.run_of(folder)
    again = f"; resume with\n  {command}" if command else ""
    if run and (folder / group.LOG).exists():
        shutil.copy(folder / group.LOG, run / group.LOG)
    if first := next((failure for failure in noted if failure.cause == group.OWN), None):
        sys.stderr.write(first.traceback)
        everywhere = any(failure.message == first.message for failure in noted if failure.rank == 0)
        return GroupFailed(first.message if everywhere else f"process {first.rank}: {first.message}", first.exit_code)
    silent = [rank for rank in range(ended.processes) if all(failure.rank != rank for failure in noted)]
    if silent and noted and noted[0].cause == group.TIMEOUT:
        those = f"process{'es' if silent[1:] else ''} {', '.join(map(str, silent))}"
        return GroupFailed(f"{those} did not answer within --dist-timeout{again}", 1)
    # SIGTERM last: torch's launcher sends it to the others when one has failed.
    if ended_by := sorted((code in BY_LAUNCHER, rank, code) for rank, code in ended.codes.items() if rank in silent):
        _, rank, code = ended_by[0]
        return GroupFailed(f"process {rank} {_fate(code)}{again}", code if code > 0 else 128 - code)
    broke = (
        "the connection between the processes broke" if noted else f"the processes ended with exit code {ended.code}"
    )
    return GroupFailed(broke + again, ended.code)


def _fate(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    likely = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{likely}"
