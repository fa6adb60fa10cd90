"""The heap of a process that trains on the CPU: settings of glibc's malloc that must be there when the process starts."""

import os
import sys
from contextlib import suppress
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
SETTINGS = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""Freed pieces of a few bytes join their neighbours at once."""


def restart_with_compact_heap() -> None:
    """Start this command anew with SETTINGS; returns where they are there already, or do not matter.

    torch asks for aligned blocks, which leave small pieces between them. Where those are kept for small requests, the large
    block around them cannot be used again, and a training holds up to 2.7 times the memory that it uses (benchmarks/plan.md).
    The time of a step is the same; splitting text into tokens takes 6 % longer.
    """
    if TUNABLES in os.environ or not sys.platform.startswith("linux") or Path("/proc/driver/nvidia").exists():
        return
    with suppress(OSError, ValueError):
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            os.environ[TUNABLES] = SETTINGS
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
