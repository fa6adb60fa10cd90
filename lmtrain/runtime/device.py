"""The devices of this machine, precision, and setup of the libraries that use them."""

import os
import platform
from datetime import timedelta
from typing import Any

from lmtrain.errors import UsageError
from lmtrain.version import __version__

T5_FAMILY = frozenset(["t5", "mt5", "umt5", "longt5", "switch_transformers"])


def environment(processes: int = 1, seed: int | None = None) -> dict[str, Any]:
    """The section `environment` of results.json."""
    import torch
    import transformers

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


def precision(requested: str, model_type: str) -> str:
    """fp32, bf16 or fp16; `auto` is bf16 on GPUs that support it. Raises UsageError if the model or device cannot use it."""
    import torch

    if requested == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if requested == "fp16" and model_type in T5_FAMILY:
        raise UsageError("--precision fp16: T5's activations overflow; use bf16 or fp32")
    if requested == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
    return requested


def join_processes(timeout: float) -> None:
    """Let this process meet the others of its run, if there are any; each waits `timeout` seconds for another one."""
    import torch
    from accelerate import PartialState

    # Without `cpu`, accelerate does not join processes on a machine that has no GPU.
    PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(seconds=timeout))


def leave_process_group() -> None:
    """Destroy the process group; a process that leaves this to the interpreter's exit may abort."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of libraries; lmtrain reports what matters itself."""
    import huggingface_hub
    import transformers

    from lmtrain.runtime import hub_client

    hub_client.limit_retries()
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging: Any = huggingface_hub.utils.logging
    hub_logging.set_verbosity_error()
