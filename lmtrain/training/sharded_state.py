"""The sharded part of a checkpoint: every process writes its own parts of weights and optimizer, as safetensors.

torch.distributed.checkpoint reads the parts that a process needs, whatever number of processes wrote them. Its Hugging Face
format is used, because its own has a pickle.
"""

from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lmtrain.config.model_checks import SHARDED
from lmtrain.modeling import lora
from lmtrain.modeling.sharding import own_tensors, part_of

State = dict[str, Any]


def save(
    checkpoint: Path, network: PreTrainedModel, optimizer: torch.optim.Optimizer, background: bool
) -> Future[Any] | None:
    """Write the weights and the optimizer's sharded state. All processes must call it.

    In the `background`, what is returned ends with the writing; the state is copied before.
    """
    tensors = _weights(network) | _sharded(optimizer.state_dict())
    writer = HuggingFaceStorageWriter(str(checkpoint / SHARDED), save_distributed=True)
    if not background:
        save_parts(tensors, storage_writer=writer)
        return None
    return cast("Future[Any]", async_save(tensors, storage_writer=writer, process_group=_group_of_saves()))


@cache
def _group_of_saves() -> distributed.ProcessGroup:
    """A group of its own: saves in the background and training exchange at the same time."""
    return cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))


def load_weights(checkpoint: Path, network: PreTrainedModel) -> None:
    """Read the weights into a network, sharded or not."""
    _read(checkpoint, _weights(network))


def without_sharded(state: State) -> State:
    """An optimizer's state dict with the name of its type in place of each sharded tensor."""

    def saved(value: Any) -> Any:
        return {"dtype": str(value.dtype).removeprefix("torch.")} if isinstance(value, DTensor) else value

    made = {
        number: {name: saved(value) for name, value in values.items()} for number, values in state["state"].items()
    }
    return {**state, "state": made}


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Load the state that `without_sharded` returned, with the sharded tensors from the checkpoint, if it has any."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    read: dict[str, torch.Tensor] = {}
    made: State = {}
    for number, values in state["state"].items():
        like = parameters[number].detach()
        made[number] = dict(values)
        for name, value in values.items():
            if isinstance(value, dict):
                made[number][name] = read[_name(number, name)] = torch.empty_like(
                    like, dtype=getattr(torch, value["dtype"])
                )
            elif value.shape == like.shape:
                made[number][name] = part_of(value, like)
    if read:
        _read(checkpoint, read)
    optimizer.load_state_dict({**state, "state": made})


def _weights(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds: all, or those that an adapter trains."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {
        f"model.{name}": tensor
        for name, tensor in own_tensors(network).items()
        if name in trained or not lora.is_adapted(network)
    }


def _sharded(state: State) -> dict[str, torch.Tensor]:
    """The sharded tensors of an optimizer's state dict."""
    return {
        _name(number, name): value
        for number, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, DTensor)
    }


def _name(parameter: int, value: str) -> str:
    return f"optimizer.{parameter}.{value}"


def _read(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    reader = HuggingFaceStorageReader(str(checkpoint / SHARDED))
    load(tensors, storage_reader=reader, no_dist=not distributed.is_initialized())
