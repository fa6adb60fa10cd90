"""The machine that a run is on: what it has, what was used of it, and keeping its libraries quiet."""

import ctypes
import gc
import os
import platform
import resource
import sys
from contextlib import suppress
from typing import Any

import huggingface_hub
import torch
import transformers
from accelerate import PartialState

from lmtrain import __version__, hub
from lmtrain.errors import UsageError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""

T5_FAMILY = frozenset(["t5", "mt5", "umt5", "longt5", "switch_transformers"])


def environment(processes: int = 1, seed: int | None = None) -> dict[str, Any]:
    """The `environment` of results.json."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lmtrain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "devices": ", ".join(gpus) or f"cpu ({os.cpu_count()} cores)",
        "processes": processes,
        **({} if seed is None else {"seed": seed}),
    }


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def precision(asked: str, model_type: str) -> str:
    """fp32, bf16 or fp16; `auto` is what this device does well. Raises UsageError for what would break the model."""
    if asked == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and model_type in T5_FAMILY:
        raise UsageError("--precision fp16: T5's activations overflow in it; use bf16 or fp32")
    if asked == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
    return asked


def give_back_memory() -> None:
    """Hand back what reading and tokenising have freed: glibc keeps it, in pieces that the model cannot use."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """From now on keep what is freed, to be used again: glibc maps large tensors anew every time, at about 1 GB/s.

    `give_back_memory` hands it back when a step no longer needs it. A GPU's memory has a keeper of its own.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def part() -> None:
    """End what several processes have in common; left to the interpreter's exit, one of them may abort."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def quiet_libraries() -> None:
    """Their bars and advice would bury ours; what matters of it is said by lmtrain in its own words."""
    hub.hold_to_an_end()
    transformers.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
