"""Run the same command again in several processes, under the distributed launcher."""

import os
import subprocess
import sys
from pathlib import Path

from lmtrain.config.train import Run
from lmtrain.errors import UsageError
from lmtrain.runtime import signals
from lmtrain.runtime.processes import LAUNCHED, is_launched


def wanted(run: Run) -> bool:
    return not is_launched() and ((run.num_processes or 1) > 1 or run.accelerate_config is not None)


def check_input(data: list[str]) -> None:
    """Raise UsageError for data from standard input, which processes cannot share."""
    from lmtrain.data.tables import STDIN, is_stdin

    if any(map(is_stdin, data)):
        raise UsageError(f"{STDIN} cannot be shared by several processes; save it to a file")


def relaunch(run: Run, data: list[str], arguments: list[str]) -> int:
    """Run `python -m lmtrain ARGUMENTS` in as many processes as the recipe wants; the first failure's exit code.

    Raises UsageError for data from standard input, which processes cannot share.
    """
    check_input(data)
    if run.accelerate_config:
        if not Path(run.accelerate_config).is_file():
            raise UsageError(
                f"--accelerate-config {run.accelerate_config}: no such file; `accelerate config` writes one"
            )
        launcher = ["-m", "accelerate.commands.launch", "--config_file", run.accelerate_config]
        command = [sys.executable, *launcher, "-m", "lmtrain", *arguments]
        return signals.wait_forwarding(subprocess.Popen(command, env={**os.environ, LAUNCHED: "1"}))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as distribute

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // (run.num_processes or 1), 1)))
    # The launcher reports a failure with a page for every process; lmtrain has printed one sentence already.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    own = ["--standalone", "--nnodes", "1", "--nproc-per-node", str(run.num_processes), "-m", "lmtrain", *arguments]
    try:
        distribute(get_args_parser().parse_args(own))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval  # the processes have saved a checkpoint and printed how to resume
    return 0
