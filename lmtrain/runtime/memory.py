"""Memory of the machine and of its devices: measured, kept, handed back."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release_memory() -> None:
    """Hand back what reading and tokenising have freed: glibc keeps it, in pieces that the model cannot use."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def retain_memory() -> None:
    """From now on keep what is freed, to be used again: glibc maps large tensors anew every time, at about 1 GB/s.

    `release_memory` hands it back when a step no longer needs it. A GPU's memory has a keeper of its own.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """The results of `work(items)`; out of memory, those of the two halves of `items`, in order.

    Raises the out-of-memory error if a single item is too much.
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
    """Whether `error` says that a device, or the machine, has no more memory to give."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def free_device_memory() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
