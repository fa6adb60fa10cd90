"""The devices of this machine, and the precision that suits them."""

import os
import platform
from typing import Any

from lmtrain.errors import UsageError
from lmtrain.version import __version__

T5_FAMILY = frozenset(["t5", "mt5", "umt5", "longt5", "switch_transformers"])


def environment(processes: int = 1, seed: int | None = None) -> dict[str, Any]:
    """The `environment` of results.json."""
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


def precision(asked: str, model_type: str) -> str:
    """fp32, bf16 or fp16; `auto` is what this device does well. Raises UsageError for what would break the model."""
    import torch

    if asked == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and model_type in T5_FAMILY:
        raise UsageError("--precision fp16: T5's activations overflow in it; use bf16 or fp32")
    if asked == "fp16" and not torch.accelerator.is_available():
        raise UsageError("--precision fp16: needs a GPU; use fp32 or bf16 on a CPU")
    return asked


def leave_process_group() -> None:
    """End what several processes have in common; left to the interpreter's exit, one of them may abort."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def quiet_libraries() -> None:
    """Their bars and advice would bury ours; what matters of it is said by lmtrain in its own words."""
    import huggingface_hub
    import transformers

    from lmtrain.runtime import hub_client

    hub_client.limit_retries()
    transformers.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
