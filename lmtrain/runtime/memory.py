"""Memory of the process and of the GPU: peak use, release and reuse, errors."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt, from glibc's malloc.h."""


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU if there is one, otherwise of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # in kibibytes on Linux, in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release_memory() -> None:
    """Return freed memory to the system: glibc keeps it, in fragments too small for the model's tensors."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def retain_memory() -> None:
    """Make malloc reuse freed memory: by default glibc maps every large tensor anew, at about 1 GB/s.

    `release_memory` still returns it to the system. Only for the CPU; torch caches the memory of a GPU itself.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """The results of `work(items)`, in order; if that runs out of memory, `items` is split in half.

    Raises the out-of-memory error if a single item does not fit.
    """
    try:
        return [*work(items)]
    except (RuntimeError, MemoryError) as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # Not inside `except`: the error keeps the frames it passed through alive, and with them their tensors.
    free_device_memory()
    half = len(items) // 2
    return in_halves(items[:half], work) + in_halves(items[half:], work)


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` means that the device or the machine is out of memory."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(should_reduce_batch_size(error))


def free_device_memory() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
