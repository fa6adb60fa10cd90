"""Whether this process is one of several that train together."""

import os
import re
import signal
from contextlib import suppress

from lmtrain.errors import UsageError, visible
from lmtrain.runtime import group

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers write the number of processes: torchrun first, then those of MPI."""

RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What each of several processes needs to meet the others."""

PR_SET_PDEATHSIG = 1
"""Parameter of prctl, from Linux's prctl.h."""

TORCHRUN = "TORCHELASTIC_RUN_ID"
FSDP = "ACCELERATE_USE_FSDP"
"""What accelerate's launcher sets where it is configured to shard."""
ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"
"""What accelerate's launcher sets, also for a single process."""


def world_size() -> int:
    """The number of processes that train together; 1 where no launcher says otherwise."""
    _, size = _size()
    return max(int(size), 1) if size.isdigit() else 1


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate) started this process as one of several.

    A single process is not one of several, although job operators set RANK=0 and WORLD_SIZE=1 for it.
    """
    return world_size() > 1 or group.is_member()  # accelerate sets no size for a single process


def is_first_process() -> bool:
    """Whether this process speaks for all; a process that cannot meet the others speaks for itself."""
    return world_size() == 1 or bool(_missing()) or os.environ["RANK"] == "0"


def settle() -> None:
    """Before processes are joined: check what a launcher set, and let a single process be alone.

    Without that, accelerate waits for a process group wherever it finds a rank. Raises UsageError for processes that
    cannot meet.
    """
    os.environ.pop(FSDP, None)  # a recipe has --shard instead
    variable, size = _size()
    if size and not size.isdigit():
        raise UsageError(f"{variable} is {visible(size)!r} in the environment, not a number of processes; unset it")
    if world_size() == 1:
        if TORCHRUN not in os.environ:
            for name in (*SIZES, "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
                os.environ.pop(name, None)
    elif missing := _missing():
        raise UsageError(
            f"{variable} is {size} in the environment, for processes that train together, but they cannot meet without "
            f"{', '.join(missing)}; start them with torchrun or --num-processes {size}, or unset {variable} to train in "
            "one process"
        )


def not_used(requested: int | None) -> str | None:
    """A warning where a launcher has started another number of processes than were `requested`."""
    running = world_size()
    if requested in (None, running) or running == 1:
        return None
    return f"--num-processes {requested} is not used: a launcher has started {running} processes"


def not_sharded(shard: str) -> str | None:
    """A warning where one process is to shard a model: there are no others to hold parts of it."""
    if shard == "none" or world_size() > 1:
        return None
    return f"--shard {shard} is not used by a single process; --num-processes starts several"


def launched_alone() -> str | None:
    """A warning where `accelerate launch` was to start several processes but started one, as it does with --cpu."""
    if world_size() > 1 or ACCELERATE not in os.environ:
        return None
    import psutil

    with suppress(psutil.Error):
        command = " ".join(psutil.Process(os.getppid()).cmdline())
        asked = re.search(r"num[_-]processes[= ](\d+)", command)
        if asked and int(asked[1]) > 1:
            return (
                f"accelerate launch started one process although it was to start {asked[1]}: on the CPU it starts no others; "
                f"lmtrain does, without it, with --num-processes {asked[1]}"
            )
    return None


def _size() -> tuple[str, str]:
    """(the variable that says how many processes there are, what it says); two empty strings where none does."""
    return next(((name, os.environ[name].strip()) for name in SIZES if os.environ.get(name)), ("", ""))


def _missing() -> list[str]:
    return [name for name in RENDEZVOUS if not os.environ.get(name)]


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, also by SIGKILL. Only Linux can."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
