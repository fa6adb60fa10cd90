"""Run the same command again in several processes, under the distributed launcher."""

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import typer

from lmtrain.config.recipe import Recipe
from lmtrain.config.train import Run
from lmtrain.errors import LmtrainError, UsageError
from lmtrain.runtime import cluster, group, signals
from lmtrain.runtime.console import Console
from lmtrain.runtime.processes import TORCHRUN, is_launched

SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that torch's launcher gives the processes to stop with a checkpoint, before it kills them."""


BY_LAUNCHER = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of processes that the launcher has ended."""


RecipeType = TypeVar("RecipeType", bound=Recipe)


class GroupFailed(LmtrainError):
    """A process of the group failed; the message is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ended:
    """How the processes of this host ended."""

    code: int
    ranks: range = range(0)
    """The ranks of this host; empty if they are not known."""
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> exit code of a process that failed by itself; -N if signal N killed it."""
    alone: bool = True
    """Whether all processes were on this host."""


def wanted(run: Run) -> bool:
    """Whether this process is to start those that train."""
    if is_launched() and not _hosts_of_slurm(run):
        return False
    return (run.num_processes or 1) > 1 or (run.nodes or 1) > 1 or run.accelerate_config is not None


def _hosts_of_slurm(run: Run) -> tuple[int, int, str] | None:
    """As cluster.hosts_of_slurm, where each of srun's tasks is to start several processes."""
    alone = (run.num_processes or 1) == 1 or run.nodes or group.is_member() or TORCHRUN in os.environ
    return None if alone else cluster.hosts_of_slurm()


def restarted(recipe: RecipeType) -> RecipeType:
    """The recipe that processes run: after a restart, it goes on from the newest checkpoint."""
    folder = os.environ.get(group.FOLDER)
    if folder is None or not group.attempt():
        return recipe
    run, _ = group.run_of(Path(folder))
    if run is None:  # the first attempt failed before the run folder existed
        return recipe
    again = {"resume": "auto", "overwrite": False, "output_dir": str(run)}
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=again)})


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
            ended = _torchrun(run, folder, arguments)
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


def _torchrun(run: Run, folder: Path, arguments: list[str]) -> Ended:
    # The launcher reports a failure with a page for every process; lmtrain prints one sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as distribute

    processes = run.num_processes or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    if run.max_restarts:  # else the next attempt would read the addresses of the one before
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    _log_to(folder / group.LOG)
    hosts, number, where, meeting = _meeting(run)
    ranks = range(number * processes, (number + 1) * processes)
    own = [*meeting, "--nproc-per-node", str(processes), "--max-restarts", str(run.max_restarts)]
    own += ["--log-dir", str(folder / "torch"), "--shutdown-timeout", os.environ[SHUTDOWN]]
    own += ["--signals-to-handle", "SIGHUP"]

    def stop(number: int, frame: FrameType | None) -> None:
        group.ask_to_stop(folder)
        raise SignalException(f"received signal {number}", signal.Signals(number))

    def give_up() -> None:
        error = _explained(folder, Ended(1, ranks, alone=hosts == 1))
        Console().error(str(error))
        sys.stderr.flush()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(error.exit_code)  # the main thread is in native code

    group.end_the_rest(folder, run.dist_timeout if run.max_restarts else 0.0, give_up)
    try:
        with signals.handled_by(stop):
            distribute(get_args_parser().parse_args([*own, "-m", "lmtrain", *arguments]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return Ended(next((code for code in codes.values() if code > 0), 1), ranks, codes, hosts == 1)
    except SignalException as error:
        return Ended(128 + error.sigval, ranks)  # the processes have saved a checkpoint
    except RendezvousError:
        raise GroupFailed(
            f"the {hosts} hosts did not meet at {where} within --dist-timeout, or lost it; each runs the same command with its "
            "own --node-rank, and host 0 must be reachable there",
            1,
        ) from None
    return Ended(0, ranks)


def _meeting(run: Run) -> tuple[int, int, str, list[str]]:
    """(number of hosts, number of this one, where they meet, arguments for torch's launcher)."""
    if slurm := _hosts_of_slurm(run):
        cluster.forget()
        hosts, number, where = slurm
    else:
        hosts, number, where = run.nodes or 1, cluster.host_number(run.node_rank), run.rendezvous or ""
    if hosts == 1:
        return 1, 0, "", ["--standalone", "--nnodes", "1"]
    from lmtrain.training import rendezvous

    rendezvous.register()
    sys.stderr.write(f"host {number} of {hosts}: meeting the others at {where}\n")
    sys.stderr.flush()
    wait = math.ceil(run.dist_timeout)
    settings = {"is_host": number == 0, "number": number, "join_timeout": wait, "read_timeout": wait}
    given = ",".join(f"{name}={value}" for name, value in settings.items())
    return (
        hosts,
        number,
        where,
        [
            *("--nnodes", str(hosts), "--rdzv-backend", rendezvous.BACKEND, "--rdzv-endpoint", where),
            *("--rdzv-id", "lmtrain", "--rdzv-conf", given),
        ],
    )


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
        everywhere = any(failure.message == first.message for failure in noted if failure.rank in ended.ranks[:1])
        return GroupFailed(first.message if everywhere else f"process {first.rank}: {first.message}", first.exit_code)
    silent = [rank for rank in ended.ranks if all(failure.rank != rank for failure in noted)]
    if silent and noted and noted[0].cause == group.TIMEOUT:
        those = f"process{'es' if silent[1:] else ''} {', '.join(map(str, silent))}"
        return GroupFailed(f"{those} did not answer within --dist-timeout{again}", 1)
    # SIGTERM last: torch's launcher sends it to the others when one has failed.
    if ended_by := sorted((code in BY_LAUNCHER, rank, code) for rank, code in ended.codes.items() if rank in silent):
        _, rank, code = ended_by[0]
        return GroupFailed(f"process {rank} {_fate(code)}{again}", code if code > 0 else 128 - code)
    if noted and noted[0].cause == group.TIMEOUT:
        others = "each other's processes" if ended.alone else "the processes of another host"
        return GroupFailed(f"waited for {others} longer than --dist-timeout{again}", 1)
    broke = (
        "the connection between the processes broke" if noted else f"the processes ended with exit code {ended.code}"
    )
    return GroupFailed(broke + again, ended.code)


def _fate(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    likely = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{likely}"
