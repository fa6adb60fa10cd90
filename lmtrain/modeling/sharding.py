"""FSDP2: each process holds a part of every parameter, of its gradient and of its optimizer state.

Zhao et al.: "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023. torch gathers the parameters of one
repeated block at a time, while it runs. The embeddings and the head stay gathered from the forward to the backward pass: the
loss uses the head as in one process (loss.py). Weights travel in float32 and are cast by autocast, as in one process.

torch.distributed is imported only where a network is sharded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from lmtrain.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel

NO_MODULE = -1
"""No id of a module of DeepSpeed."""

LAYER_DROP = re.compile(r"(\w+_)?layerdrop")


def check_shardable(network: PreTrainedModel) -> None:
    """Raise UsageError for a model that cannot be sharded."""
    drops = [name for name, value in network.config.to_dict().items() if LAYER_DROP.fullmatch(name) and value]
    if drops:
        raise UsageError(
            f"--shard fsdp2: the model skips layers at random, other ones in each process; set {', '.join(drops)} to 0 in its "
            "configuration (--model-config from scratch), or leave out --shard"
        )
    if not blocks(network):
        raise UsageError(f"--shard fsdp2: {network.config.model_type} has no repeated blocks; leave out --shard")


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks: the members of the outermost module lists that share no parameter with another module."""
    members = [block for block in _members(network) if any(True for _ in block.parameters())]
    within = {id(module) for block in members for module in block.modules()}
    owners: dict[int, list[nn.Module]] = {}
    for module in [*members, *(module for module in network.modules() if id(module) not in within)]:
        for parameter in module.parameters(recurse=module in members):
            owners.setdefault(id(parameter), []).append(module)
    return [block for block in members if all(len(owners[id(p)]) == 1 for p in block.parameters())]


def _members(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _members(child)


@dataclass(frozen=True)
class Sharding:
    """How the parameters of a network are sharded."""

    offload: bool
    """The parts lie in CPU memory."""
    async_save: bool = False
    """Checkpoints are written while training goes on."""

    def shard(self, network: PreTrainedModel, device: torch.device, processes: int) -> None:
        """Shard the parameters in place over all `processes`."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        # transformers' models change no output of a block in place, which the warning is about.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        mesh = init_device_mesh(device.type, (processes,))
        policy = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        for block in blocks(network):
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(network, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
        # Else Trainer would add up whole gradients in each process.
        network._is_fsdp_managed_module = False  # type: ignore[assignment]


def is_sharded(network: nn.Module) -> bool:
    return hasattr(network, "set_reshard_after_forward")


def plain_class(network: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of the network before torch derived its own from it to shard it."""
    return type(network).__mro__[2] if is_sharded(network) else type(network)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """While open, each process holds all parameters and runs the network independently of the others.

    All processes must open it. Nothing changes for a network that is not sharded.
    """
    sharded = [cast("FSDPModule", module) for module in network.modules() if is_sharded(module)]
    if any(hasattr(parameter, "ds_active_sub_modules") for parameter in network.parameters()):
        with _gathered_by_deepspeed(network):
            yield
        return
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(module is not sharded[0], recurse=False)


@contextmanager
def _gathered_by_deepspeed(network: nn.Module) -> Iterator[None]:
    """While open, each process holds all parameters that DeepSpeed ZeRO-3 has sharded."""
    import deepspeed

    parameters: list[Any] = list(network.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        for parameter in parameters:
            parameter.ds_active_sub_modules.add(NO_MODULE)  # else each is released after its module has run
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.ds_active_sub_modules.discard(NO_MODULE)


def _tied(network: nn.Module) -> list[tuple[list[str], torch.Tensor]]:
    """(the names that a tensor of the state dict has, the tensor, which is a DTensor where it is sharded)."""
    names: dict[int, list[str]] = {}
    tensors = network.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [(tied, tensors[tied[0]].detach()) for tied in names.values()]


def own_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """First name -> tensor of the state dict; tied weights are there once."""
    return {names[0]: tensor for names, tensor in _tied(network)}


def whole_weights(network: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """The state dict of a sharded network, gathered into CPU memory tensor by tensor; empty without `keep`.

    All processes must call it. Tied weights are one tensor, as in a network that is not sharded.
    """
    from torch.distributed.tensor import DTensor

    weights: dict[str, torch.Tensor] = {}
    for names, tensor in _tied(network):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            weights |= dict.fromkeys(names, whole.cpu())
    return weights


def part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole tensor that this process holds, distributed as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_whole(own: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> None:
    """Copy each process's part of whole tensors into the `own` ones of a sharded network."""
    for name, tensor in own.items():
        tensor.copy_(part_of(whole[name], tensor))


def load_folder(network: PreTrainedModel, folder: Path) -> None:
    """Load whole weights, saved as safetensors, into a sharded network."""
    saved = {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}
    # A file holds tied weights under one of their names.
    own = {next(name for name in names if name in saved): tensor for names, tensor in _tied(network)}
    load_whole(own, saved)
