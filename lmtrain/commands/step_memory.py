"""The memory of a training step in one process, estimated from shapes."""

import math
from dataclasses import dataclass
from functools import cache

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from lmtrain.config.recipe import Recipe
from lmtrain.modeling.activations import saved_bytes
from lmtrain.modeling.linear_cross_entropy import rows_at_once

OPTIMIZER_BYTES = {"sgd": 0, "adagrad": 4, "rmsprop": 4, "lion_32bit": 4, "adafactor": 0.1}
"""State of an optimiser per trained parameter; two float32 moments where the name is not here."""

LOGITS_COPIES = 3
"""Buffers of the loss with as many cells: logits, their log-probabilities, and what a bias adds or a cast makes."""

HEADROOM = 1.12
"""What backward adds to the tensors that it finds, measured (benchmarks/plan.md): gradients of activations, freed memory that
cannot be used again at once."""

RECOMPUTING = 1.9
"""The same for the block that gradient checkpointing computes again, whose gradients no freed block makes room for."""

TRIALS = 120_000_000
"""Bytes that a CPU process keeps of the trials before the first step: how the model masks and pads."""


@dataclass(frozen=True)
class Shape:
    """The largest batch of an epoch."""

    rows: int
    length: int
    """Tokens of a row, padded."""
    targets: int
    """Of a target, for encoder-decoders."""
    slots: int
    """Token slots in all, padding included; fewer than rows × length where batches are padding-free."""
    supervised: int
    """Tokens with a label."""

    def of_rows(self, rows: int) -> "Shape":
        """The same batch with another number of rows."""
        factor = rows / self.rows
        return Shape(
            rows, self.length, self.targets, math.ceil(self.slots * factor), math.ceil(self.supervised * factor)
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what they hold, at the peak of a step."""

    libraries: int
    """The process itself: Python, torch, the data in memory. 0 on a GPU."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    recomputed: int
    """Activations of the block that backward computes again; 0 without gradient checkpointing."""
    logits: int
    """The loss: logits of some positions at once, and the gradient that they leave."""

    @property
    def peak(self) -> int:
        """Gradients come into being while activations go: at the peak, one of both is nearly whole."""
        moving = max(HEADROOM * self.activations + self.logits, self.gradients + self.logits // 2)
        return int(self.libraries + self.weights + self.optimizer + moving + RECOMPUTING * self.recomputed)

    def document(self) -> dict[str, int]:
        return {name: int(value) for name, value in vars(self).items()}


class Estimate:
    """Shape of a batch -> its memory in one process."""

    def __init__(self, recipe: Recipe, network: PreTrainedModel, width: int | None, dtype: str, processes: int):
        self.recipe, self.network, self.width, self.dtype = recipe, network, width, dtype
        self.parts = processes if recipe.run.shard != "none" else 1
        self.on_gpu = torch.cuda.is_available()
        self.saved = cache(self._saved)

    def __call__(self, shape: Shape) -> Memory:
        every, trained = (
            number_of_parameters(self.network, trained=False),
            number_of_parameters(self.network, trained=True),
        )
        per_parameter = OPTIMIZER_BYTES.get(self.recipe.train.optim, 8)
        if self.parts > 1 and self.recipe.run.shard == "zero2":
            weights = 4 * every
        else:
            weights = 4 * every // self.parts
        if self.dtype != "fp32":
            weights += 2 * every  # the copies that autocast makes and keeps for a step
        if self.parts > 1:
            weights += 4 * self._largest_block()
        kept, recomputed = self._activations(shape)
        return Memory(
            libraries=0 if self.on_gpu else psutil.Process().memory_info().rss + TRIALS,
            weights=weights,
            gradients=4 * trained // self.parts,
            optimizer=int(per_parameter * trained) // self.parts,
            activations=kept,
            recomputed=recomputed,
            logits=self._logits(shape),
        )

    def _activations(self, shape: Shape) -> tuple[int, int]:
        """(bytes kept for backward, bytes recomputed); both are linear in rows, so that two small batches tell all."""
        if self.width and not self.network.config.is_encoder_decoder and shape.slots < shape.rows * shape.length:
            length = min(self.width, shape.slots)
            rows = max(shape.slots / length, 1.0)
        else:
            length, rows = shape.length, float(shape.rows)
        batches = (self.saved(count, length, shape.targets) for count in (1, 2))
        kept, recomputed = (int(one + (two - one) * (rows - 1)) for one, two in zip(*batches, strict=True))
        return kept, recomputed

    def _saved(self, rows: int, length: int, targets: int) -> tuple[int, int]:
        network = self.network if self.dtype == "fp32" else _half(self.network)
        kernels = self.recipe.train.fast_kernels and not self.on_gpu
        kept = saved_bytes(network, rows, length, targets, kernels)
        if not self.recipe.train.gradient_checkpointing:
            return kept, 0
        checkpointing(network, False)
        whole = saved_bytes(network, rows, length, targets, kernels)
        checkpointing(network, True)
        return kept, (whole - kept) // max(_number_of_blocks(network), 1)

    def _logits(self, shape: Shape) -> int:
        head = self.network.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if weight is None:
            return 0
        vocabulary, width = weight.shape
        device = torch.device("cuda" if self.on_gpu else "cpu")
        at_once = min(rows_at_once(vocabulary, device), shape.supervised)
        states = 2 * shape.supervised * width * 4  # those with a label, and their gradient
        return LOGITS_COPIES * at_once * vocabulary * 4 + states + (weight.numel() * 4 if weight.requires_grad else 0)

    def _largest_block(self) -> int:
        """Parameters of the largest child of a module list, which FSDP gathers whole, and of what is outside of them."""
        lists = [module for module in self.network.modules() if isinstance(module, nn.ModuleList)]
        blocks = [sum(p.numel() for p in child.parameters()) for module in lists for child in module]
        inside = sum(p.numel() for module in lists[:1] for p in module.parameters())
        return max(blocks, default=0) + number_of_parameters(self.network, trained=False) - inside


def _number_of_blocks(network: PreTrainedModel) -> int:
    """Layers in all lists of them: of an encoder-decoder, in both halves."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return sum(len(list(network.get_submodule(name).children())) for name in outermost)


def checkpointing(network: PreTrainedModel, on: bool) -> None:
    """Turn gradient checkpointing on or off; transformers 5.24 has renamed it."""
    verb = "enable" if on else "disable"
    switch = getattr(network, f"activation_checkpointing_{verb}", None)
    (switch or getattr(network, f"gradient_checkpointing_{verb}"))()


def _half(network: PreTrainedModel) -> PreTrainedModel:
    """The network in bfloat16: the meta device has no autocast."""
    half: nn.Module = network.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps `to` without its types
    assert isinstance(half, PreTrainedModel)
    return half


def number_of_parameters(network: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)
