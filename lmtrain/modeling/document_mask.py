"""Texts that share a row, kept apart: none attends to another, and the positions of each start anew.

How a model is told so differs by architecture, and where it is told wrongly nothing fails, it only learns from the
wrong texts. So every way is tried on a few made-up texts, and that one is taken which gives each text the logits that it
has alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmtrain.modeling.loss import TokenLoss, evaluating
from lmtrain.preprocessing.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TOLERANCE = 2e-5
"""Relative to the largest logit, in float32: rounding is ten times less, a text that sees another a hundred times more."""

LENGTHS = ((5, 7, 3), (4, 6))
"""Of the made-up texts that share two rows; one is longer where the model looks at a window of no more than WIDEST."""

WIDEST = 512


@dataclass(frozen=True)
class DocumentMask:
    """What to give a model for texts that share rows, in place of an attention mask of ones and zeros."""

    masks: Callable[[DocumentMask, torch.Tensor], Any]
    """documents [rows, length] -> what the model takes as its attention mask."""
    causal: bool
    first_position_id: int
    """The position of a text's first token: RoBERTa counts from the pad id on."""
    takes_positions: bool
    takes_cache: bool
    additive: bool
    """Whether its attention adds the mask (eager) rather than reads it as true and false (sdpa)."""
    dtype: torch.dtype
    window: int

    def __call__(self, network: Any, batch: Batch) -> Any:
        """What the model says of the batch, whose `documents` are [rows, length]."""
        documents = batch["documents"]
        inputs: dict[str, Any] = {n: t for n, t in batch.items() if n not in ("documents", "attention_mask")}
        masks = self.masks(self, documents)
        if masks is not None:
            inputs["attention_mask"] = masks
        if self.takes_positions:
            inputs["position_ids"] = document_positions(documents) + self.first_position
        if self.takes_cache:
            inputs["use_cache"] = False  # with a cache, the model would not look at the positions
        return network(**inputs)

    def mask(self, allowed: torch.Tensor) -> torch.Tensor:
        return attention_mask(allowed, self.dtype if self.additive else None)


def attention_mask(allowed: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """[rows, 1, queries, keys] from `allowed` without the 1: as it is, or in `dtype` to be added to scores."""
    allowed = allowed[:, None]
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """[rows, length]: the place of each token in its own text; padding counts as a text."""
    at = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return at - torch.where(new, at, 0).cummax(1).values


def _by_positions(apart: DocumentMask, documents: torch.Tensor) -> None:
    """Nothing: where positions start anew, transformers makes the mask, in the cheapest form that its kernel takes."""


def _same(apart: DocumentMask, documents: torch.Tensor) -> torch.Tensor:
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril() if apart.causal else same


def _one_mask(apart: DocumentMask, documents: torch.Tensor) -> torch.Tensor:
    return apart.mask(_same(apart, documents))


def _mask_by_layer(apart: DocumentMask, documents: torch.Tensor) -> dict[str, torch.Tensor]:
    """For models that alternate between attention to everything and to a window (ModernBERT)."""
    same = _same(apart, documents)
    at = torch.arange(documents.shape[1], device=documents.device)
    near = (at[:, None] - at[None, :]).abs() <= apart.window
    return {"full_attention": apart.mask(same), "sliding_attention": apart.mask(same & near)}


@dataclass(frozen=True)
class Packing:
    """How the training rows of a run share rows."""

    data: Any
    """The recipe's data section, with the packing that this model allows."""
    apart: DocumentMask | None
    """How texts that share a row are kept apart; None where none do."""
    warnings: list[str]


def choose_packing(network: PreTrainedModel, data: Any, kind: str, causal: bool) -> Packing:
    """What the recipe asks for, or blocks where the model cannot keep texts apart."""
    if not data.shares or kind != "text":
        return Packing(data, None, [])
    if apart := find_document_mask(network, causal):
        return Packing(data, apart, [])
    told = (f"{network.config.model_type} cannot keep texts that share a row apart: they are packed as blocks, where one "
            "reads the one before; --no-packing keeps them apart")  # fmt: skip
    return Packing(data.model_copy(update={"packing_strategy": "blocks"}), None, [told])


BUILDERS = (_by_positions, _one_mask, _mask_by_layer)


def find_document_mask(network: PreTrainedModel, causal: bool) -> DocumentMask | None:
    """The way that keeps texts apart in this very model; None where none does."""
    takes = signature(network.forward).parameters
    config = network.config
    for way in BUILDERS:
        apart = DocumentMask(
            way, causal, first_position_id(network), "position_ids" in takes, "use_cache" in takes,
            config._attn_implementation == "eager", network.dtype,
            getattr(config, "sliding_window", None) or getattr(config, "local_attention", 0) // 2,
        )  # fmt: skip
        if _separates(network, apart):
            return apart
    return None


def first_position_id(network: torch.nn.Module) -> int:
    embeddings = [module for name, module in network.named_modules()
                  if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")]  # fmt: skip
    paddings = [table.padding_idx for table in embeddings if table.padding_idx is not None]
    return paddings[0] + 1 if paddings else 0


@torch.no_grad()
def _separates(network: PreTrainedModel, apart: DocumentMask) -> bool:
    beyond = (apart.window + 4,) if 0 < apart.window <= WIDEST else ()
    rows = [(*row, *beyond) for row in LENGTHS]
    longest = max(map(sum, rows))
    vocabulary = len(network.get_input_embeddings().weight)
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(vocabulary // 2, vocabulary, size=(len(rows), longest)))
    numbers = [np.repeat(np.arange(1, len(row) + 1), row) for row in rows]
    documents = torch.tensor([[*row, *[0] * (longest - len(row))] for row in numbers])
    batch = {"input_ids": ids, "attention_mask": documents.clamp(max=1), "documents": documents, "labels": ids}
    batch = {name: tensor.to(network.device) for name, tensor in batch.items()}
    with evaluating(network):
        try:
            together, _ = TokenLoss(0, apart=apart).aligned(network, batch)
        except Exception:  # whatever it is called: the model does not take this
            return False
        for row, number in _texts(documents):
            at = documents[row] == number
            text = {name: batch[name][row][at][None] for name in ("input_ids", "labels")}
            alone, _ = TokenLoss(0).aligned(network, text | {"attention_mask": torch.ones_like(text["labels"])})
            gap = (together[row][at] - alone[0]).abs().max()
            if not gap <= TOLERANCE * alone.abs().max():
                return False
    return True


def _texts(documents: torch.Tensor) -> list[tuple[int, int]]:
    """(row, number) of each text."""
    return [(row, number) for row, numbers in enumerate(documents.tolist()) for number in sorted(set(numbers) - {0})]
