"""Padding-free batches: the texts (or pairs) of a batch are concatenated into rows instead of padded.

A batch of sentence pairs or chats drawn at random is nearly half padding. Batches of like length need less, but a step of
them teaches less (benchmarks/speed.md). A padding-free step keeps its texts, its loss and its gradient; only the rows of
the texts differ, and no text attends to another. As in document_mask.py, each model is tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lmtrain.config.data import Data
from lmtrain.config.recipe import Recipe
from lmtrain.data.labels import LABELLED
from lmtrain.modeling.document_mask import (
    TOLERANCE,
    attention_mask,
    document_positions,
    find_document_mask,
    first_position_id,
)
from lmtrain.modeling.loss import DocumentAttention, TokenLoss, decoder_inputs, evaluating
from lmtrain.modeling.network import positions as limit_of
from lmtrain.modeling.output_head import replaced_forward
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, padded
from lmtrain.preprocessing.packing import share_rows

WIDTH = 512
"""Tokens that a row has room for on either side, or as many as the longest text of its batch: attention costs the square
of a row."""

MADE_UP = (((5, 4), (3, 6)), ((4, 3), (6, 5)))
"""(source, target) tokens of the pairs in two rows to try a model with; the first row gets the longest pair as well."""


@dataclass(frozen=True)
class PaddingFree:
    """How the texts of a batch share rows, and how the model separates them."""

    width: int
    """Tokens that a row has room for."""
    attention: DocumentAttention

    def __call__(self, network: PreTrainedModel, batch: Batch) -> Batch:
        """The batch with its texts concatenated, `documents` numbering them from 1 on in each row.

        The batch itself where that hardly saves anything. Of pairs, `documents` number the sources and
        `decoder_documents` the targets; `decoder_input_ids` follow from the labels of each pair.
        """
        lengths = text_lengths(batch, network.config.is_encoder_decoder)
        shared, _ = share_rows(lengths, self.width)
        return batch if shared is None else concatenate_rows(network, batch, lengths, shared)


def text_lengths(batch: Batch, pairs: bool) -> np.ndarray:
    """[texts, 1] tokens; of pairs, [pairs, 2] those of source and target."""
    lengths = [batch["attention_mask"].sum(1)]
    if pairs:
        supervised = batch["labels"] != IGNORED
        lengths.append((supervised * torch.arange(1, supervised.shape[1] + 1)).amax(1).clamp(min=1))
    return torch.stack(lengths, 1).numpy()


def concatenate_rows(
    network: PreTrainedModel, batch: Batch, lengths: np.ndarray, shared: Sequence[np.ndarray]
) -> Batch:
    sides = ("documents", "decoder_documents")[: lengths.shape[1]]
    last = len(sides) - 1  # the side that is predicted
    columns = {"input_ids": (batch["input_ids"], 0, 0), "labels": (batch["labels"], last, IGNORED)}
    if last:
        columns["decoder_input_ids"] = (decoder_inputs(network, batch["labels"]), last, 0)
    made = {
        name: padded([np.concatenate([values[text, : lengths[text, side]] for text in row]) for row in shared], fill)
        for name, (tensor, side, fill) in columns.items()
        for values in [tensor.numpy()]
    }
    for side, name in enumerate(sides):
        made[name] = padded([np.repeat(np.arange(1, len(row) + 1), lengths[row, side]) for row in shared], 0)
    return made | {"attention_mask": (made["documents"] > 0).long()}


@dataclass(frozen=True)
class PairMask:
    """Separates the pairs that share rows in an encoder-decoder, by the masks and positions of encoder and decoder."""

    encoder: nn.Module
    decoder: nn.Module
    dtype: torch.dtype | None
    """Of masks that are added to scores (eager); None: they are read as true and false (sdpa)."""

    def prepare(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """(the model's arguments, a context with positions and masks that is open while it runs); see PaddingFree."""
        sources, targets = inputs["documents"], inputs["decoder_documents"]
        # Padding of a row of targets sees the row's last source: a query that sees nothing has no softmax.
        queries = torch.where(targets > 0, targets, sources.amax(1, keepdim=True))
        own, before = _same(sources, sources), _same(targets, targets).tril()
        prepared = {
            "input_ids": inputs["input_ids"],
            "attention_mask": attention_mask(_same(queries, sources), self.dtype),
            "use_cache": False,
            "decoder_input_ids": inputs["decoder_input_ids"],
            "decoder_attention_mask": attention_mask(before, self.dtype),
        }
        return prepared, self._separated(sources, targets, attention_mask(own, self.dtype))

    @contextmanager
    def _separated(self, sources: torch.Tensor, targets: torch.Tensor, own: torch.Tensor) -> Iterator[None]:
        """While open, the positions of each text start anew, and the encoder sees the mask `own`."""
        encoder = _forwards(self.encoder, sources, attention_mask=own)
        with replaced_forward(encoder), replaced_forward(_forwards(self.decoder, targets)):
            yield


def _same(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return queries[:, :, None] == keys[:, None, :]


def _forwards(side: nn.Module, documents: torch.Tensor, **more: Any) -> dict[nn.Module, Callable[..., Any]]:
    """Module -> its forward, for a side of the model that is called with `more` and restarts positions per document."""
    at = document_positions(documents)
    tables = (table for name, table in side.named_modules() if name.endswith("embed_positions"))
    forwards: dict[nn.Module, Callable[..., Any]] = {table: _from_table(table, at) for table in tables}
    if "position_ids" in signature(side.forward).parameters:
        more["position_ids"] = at + first_position_id(side)
    before = side.forward
    forwards[side] = lambda *given, **named: before(*given, **{**named, **more})
    return forwards


def _from_table(table: nn.Module, at: torch.Tensor) -> Any:
    """The forward of a table of position embeddings, for the positions `at` [rows, length]."""
    before = table.forward
    if "position_ids" in signature(before).parameters:
        return lambda shape, *_, **__: before(shape, position_ids=at.flatten()).view(*at.shape, -1)
    count = int(at.max()) + 1
    return lambda *_, **__: before(inputs_embeds=torch.empty(1, count, 1, device=at.device))[0][at]


def is_applicable(recipe: Recipe, data: Data, kind: str) -> bool:
    """Whether batches are to be padding-free, where the model can separate texts.

    Packed text, as `data` says, fills its rows already, and a compiled model wants few shapes.
    """
    if kind in LABELLED:  # the label of a text is read at the start of its row
        return False
    return not recipe.train.compile and not (kind == "text" and (data.packs_documents or data.packs_blocks))


def row_width(network: PreTrainedModel) -> int:
    """Tokens of a row in which no text is longer.

    At most the model's positions, though they start anew in each text: some models hold a causal mask of that size.
    """
    limit = None if network.config.is_encoder_decoder else limit_of(network)
    return min(WIDTH, limit or WIDTH)


def choose_padding_free(
    network: PreTrainedModel, loss: TokenLoss, collator: Collator, longest: Sequence[int]
) -> PaddingFree | None:
    """How this model runs padding-free on texts (pairs) whose longest has `longest` tokens (source and target).

    None where the model cannot separate them, and where its loss is not a sum over tokens or depends on padding.
    """
    if loss.own or loss.whole_logits or collator.fixed:
        return None
    width = row_width(network)
    if not network.config.is_encoder_decoder:
        mask = find_document_mask(network, causal=loss.shift == 1)
        return PaddingFree(width, mask) if mask else None
    dtype = network.dtype if network.config._attn_implementation == "eager" else None
    pairs = PairMask(network.get_encoder(), network.get_decoder(), dtype)
    return PaddingFree(width, pairs) if _separates(network, pairs, longest) else None


@torch.no_grad()
def _separates(network: PreTrainedModel, mask: PairMask, longest: Sequence[int]) -> bool:
    """Whether made-up pairs that share rows have the logits that each has alone."""
    shared: list[list[tuple[int, ...]]] = [[*MADE_UP[0], tuple(longest)], [*MADE_UP[1]]]
    lengths = np.array([pair for row in shared for pair in row])
    numbers = np.split(np.arange(len(lengths)), np.cumsum([*map(len, shared)])[:-1])
    embeddings: Any = network.get_input_embeddings()
    vocabulary = len(embeddings.weight)
    random = np.random.default_rng(0)
    sources, targets = (
        [random.integers(vocabulary // 2, vocabulary, size=length) for length in side] for side in lengths.T
    )
    read = padded([np.ones(len(ids), np.int64) for ids in sources], 0)
    batch = {"input_ids": padded(sources, 0), "attention_mask": read, "labels": padded(targets, IGNORED)}
    with evaluating(network):
        try:
            joined = {n: t.to(network.device) for n, t in concatenate_rows(network, batch, lengths, numbers).items()}
            together, _ = TokenLoss(0, document_attention=mask).aligned(network, joined)
        except Exception:  # the model does not take this, whatever its error is called
            return False
        for row, pairs in enumerate(numbers):
            starts = np.cumsum(lengths[pairs, 1]) - lengths[pairs, 1]
            for start, pair in zip(starts.tolist(), pairs.tolist(), strict=True):
                one = {"input_ids": padded([sources[pair]], 0), "labels": padded([targets[pair]], 0)}
                one = {name: tensor.to(network.device) for name, tensor in one.items()}
                alone, _ = TokenLoss(0).aligned(network, one | {"attention_mask": torch.ones_like(one["input_ids"])})
                gap = (together[row, start : start + len(targets[pair])] - alone[0]).abs().max()
                if not gap <= TOLERANCE * alone.abs().max():
                    return False
    return True
