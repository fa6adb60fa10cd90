"""DeepSpeed ZeRO: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020.

ZeRO-2 shards gradients and optimizer state, ZeRO-3 the parameters as well. Trainer and accelerate run it.
"""

import warnings
from importlib.util import find_spec
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import deepspeed

from lmtrain.config.train import Run
from lmtrain.errors import UsageError
from lmtrain.runtime.processes import world_size

STAGES = {"zero2": 2, "zero3": 3}


def settings(run: Run) -> dict[str, Any] | None:
    """The configuration of DeepSpeed for --shard; None where it is not wanted, or not used. Raises UsageError without DeepSpeed."""
    if run.shard not in STAGES or world_size() == 1:
        return None
    if find_spec("deepspeed") is None:
        raise UsageError(
            f"--shard {run.shard}: DeepSpeed is not installed; pip install 'lmtrain[deepspeed]', or use fsdp2"
        )
    # Of torch's functions that DeepSpeed calls.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    offload = {"device": "cpu"} if run.shard_offload else {"device": "none"}
    zero = {"stage": STAGES[run.shard], "offload_optimizer": offload}
    if run.shard == "zero3":
        zero |= {"offload_param": offload, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }


def put_off() -> None:
    """Let transformers build a whole model: it is tried before its first step, and sharded only then."""
    deepspeed.unset_hf_deepspeed_config()


def begin(arguments: TrainingArguments) -> None:
    """Undo `put_off`, where the arguments configure DeepSpeed."""
    if configured := getattr(arguments, "hf_deepspeed_config", None):
        deepspeed.set_hf_deepspeed_config(configured)
