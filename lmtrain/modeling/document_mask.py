"""Packed documents never attend to each other, and the positions of each start anew.

The arguments for that differ by architecture, and wrong ones fail silently: tokens attend to other documents. So each way
is tried on a few made-up documents; the first one that gives every document the logits it has alone is used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmtrain.config.data import Data
from lmtrain.modeling.loss import TokenLoss, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 2e-5
"""Relative to the largest logit, in float32: rounding is ten times less, a document that sees another 100 times more."""

LENGTHS = ((5, 7, 3), (4, 6))
"""Tokens of the made-up documents in two rows; models with a window of at most WIDEST get a longer one as well."""

WIDEST = 512


@dataclass(frozen=True)
class DocumentMask:
    """The arguments for rows that documents share, in place of an attention mask of ones and zeros."""

    masks: Callable[[DocumentMask, torch.Tensor], Any]
    """documents [rows, length] -> what the model takes as its attention mask."""
    causal: bool
    first_position_id: int
    """The position id of a document's first token: RoBERTa counts from the pad id on."""
    takes_positions: bool
    takes_cache: bool
    additive: bool
    """Whether its attention adds the mask (eager) rather than reads it as true and false (sdpa)."""
    dtype: torch.dtype
    window: int

    def prepare(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """(the model's arguments for `inputs` whose `documents` are [rows, length]; an empty context)."""
        documents = inputs["documents"]
        prepared = {name: value for name, value in inputs.items() if name not in ("documents", "attention_mask")}
        masks = self.masks(self, documents)
        if masks is not None:
            prepared["attention_mask"] = masks
        if self.takes_positions:
            prepared["position_ids"] = document_positions(documents) + self.first_position_id
        if self.takes_cache:
            prepared["use_cache"] = False  # with a cache, the model would ignore the positions
        return prepared, nullcontext()

    def mask(self, allowed: torch.Tensor) -> torch.Tensor:
        return attention_mask(allowed, self.dtype if self.additive else None)


def attention_mask(allowed: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """[rows, 1, queries, keys] from `allowed` [rows, queries, keys]: boolean, or in `dtype` to be added to scores."""
    allowed = allowed[:, None]
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """[rows, length]: the position of each token in its own document; padding counts as a document."""
    at = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return at - torch.where(new, at, 0).cummax(1).values


def _by_positions(mask: DocumentMask, documents: torch.Tensor) -> None:
    """No mask: where positions start anew, transformers builds it, in the cheapest form that its kernel takes."""


def _same(mask: DocumentMask, documents: torch.Tensor) -> torch.Tensor:
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril() if mask.causal else same


def _one_mask(mask: DocumentMask, documents: torch.Tensor) -> torch.Tensor:
    return mask.mask(_same(mask, documents))


def _mask_by_layer(mask: DocumentMask, documents: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two masks, for models that alternate between full and sliding-window attention (ModernBERT)."""
    same = _same(mask, documents)
    at = torch.arange(documents.shape[1], device=documents.device)
    near = (at[:, None] - at[None, :]).abs() <= mask.window
    return {"full_attention": mask.mask(same), "sliding_attention": mask.mask(same & near)}


BUILDERS = (_by_positions, _one_mask, _mask_by_layer)
"""The ways to separate documents, the cheapest first."""


@dataclass(frozen=True)
class Packing:
    """How the training rows of a run share rows."""

    data: Data
    """The recipe's data section, with the packing that this model allows."""
    shares_rows: bool = False
    """Whether whole documents share rows without attending to each other."""
    mask: DocumentMask | None = None
    """How they are separated; None where none share rows, or where no weights are there to try (preview)."""
    warnings: tuple[str, ...] = ()


def choose_packing(network: PreTrainedModel, data: Data, kind: str, causal: bool) -> Packing:
    """The packing that the recipe asks for, or blocks where the model cannot separate documents."""
    assumed = assume_packing(data, kind)
    if not assumed.shares_rows:
        return assumed
    if mask := find_document_mask(network, causal):
        return Packing(data, True, mask)
    warning = (
        f"{network.config.model_type} cannot keep packed documents from attending to each other, so they are concatenated and "
        "cut into blocks; --no-packing gives every document a row of its own"
    )
    return Packing(data.model_copy(update={"packing_strategy": "blocks"}), warnings=(warning,))


def assume_packing(data: Data, kind: str) -> Packing:
    """The packing that the recipe asks for, before the model is tried."""
    return Packing(data, data.packs_documents and kind == "text")


def find_document_mask(network: PreTrainedModel, causal: bool) -> DocumentMask | None:
    """The mask that separates documents in this model; None if none does."""
    parameters = signature(network.forward).parameters
    config = network.config
    for builder in BUILDERS:
        mask = DocumentMask(
            builder,
            causal,
            first_position_id(network),
            "position_ids" in parameters,
            "use_cache" in parameters,
            config._attn_implementation == "eager",
            network.dtype,
            getattr(config, "sliding_window", None) or getattr(config, "local_attention", 0) // 2,
        )
        if _separates(network, mask):
            return mask
    return None


def first_position_id(network: torch.nn.Module) -> int:
    """The position id of the first token: 0, or behind the pad id (RoBERTa)."""
    tables = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
    ]
    paddings = [table.padding_idx for table in tables if table.padding_idx is not None]
    return paddings[0] + 1 if paddings else 0


@torch.no_grad()
def _separates(network: PreTrainedModel, mask: DocumentMask) -> bool:
    """Whether made-up documents that share rows have the logits that each has alone."""
    batch = _made_up(network, mask.window)
    documents = batch["documents"]
    with evaluating(network):
        try:
            together, _ = TokenLoss(0, document_attention=mask).aligned(network, batch)
        except Exception:  # the model does not take this, whatever its error is called
            return False
        for row, numbers in enumerate(documents.tolist()):
            for number in sorted(set(numbers) - {0}):
                at = documents[row] == number
                text = {name: batch[name][row][at][None] for name in ("input_ids", "labels")}
                alone, _ = TokenLoss(0).aligned(network, text | {"attention_mask": torch.ones_like(text["labels"])})
                gap = (together[row][at] - alone[0]).abs().max()
                if not gap <= TOLERANCE * alone.abs().max():
                    return False
    return True


def _made_up(network: PreTrainedModel, window: int) -> dict[str, torch.Tensor]:
    """Two rows of documents of random ids, on the model's device."""
    beyond = (window + 4,) if 0 < window <= WIDEST else ()
    rows = [(*row, *beyond) for row in LENGTHS]
    longest = max(map(sum, rows))
    embeddings: Any = network.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(vocabulary // 2, vocabulary, size=(len(rows), longest)))
    numbers = [np.repeat(np.arange(1, len(row) + 1), row) for row in rows]
    documents = torch.tensor([[*row, *[0] * (longest - len(row))] for row in numbers])
    batch = {"input_ids": ids, "attention_mask": documents.clamp(max=1), "documents": documents, "labels": ids}
    return {name: tensor.to(network.device) for name, tensor in batch.items()}
