"""The texts, or pairs, of a batch end to end in rows, rather than each in a row of its own that is filled up with padding.

A batch of sentence pairs or of chats drawn by chance is nearly half padding. Some of like length need less, but a step of
them teaches less (benchmarks/speed.md). Here a step keeps what it has, and its loss and gradient; only where the texts
lie differs, and none of them sees another. As in apart.py, a model is tried before it is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lmtrain.modeling.document_mask import (
    TOLERANCE,
    DocumentMask,
    attention_mask,
    document_positions,
    find_document_mask,
    first_position_id,
)
from lmtrain.modeling.loss import TokenLoss, decoder_inputs, evaluating
from lmtrain.modeling.network import positions as limit_of
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, padded
from lmtrain.preprocessing.packing import share_rows

WIDTH = 512
"""Tokens that a row has room for on either side, or as many as the longest text of its batch: attention costs the square
of a row."""

MADE_UP = (((5, 4), (3, 6)), ((4, 3), (6, 5)))
"""(source, target) tokens of the pairs that two rows are made of to try a model; the first row gets the longest as well."""


@dataclass(frozen=True)
class PaddingFree:
    """How the texts of a batch share rows, and how a model is told."""

    width: int
    apart: DocumentMask | PairMask

    def __call__(self, network: PreTrainedModel, batch: Batch) -> Batch:
        """The batch with its texts end to end, `documents` numbering them from 1 on in each row; the batch itself where
        that hardly saves anything.

        Of pairs these are the sources; `decoder_documents` number the targets, and `decoder_input_ids` follow from the
        labels of each pair.
        """
        lengths = text_lengths(batch, network.config.is_encoder_decoder)
        shared, _ = share_rows(lengths, self.width)
        return batch if shared is None else concatenate_rows(network, batch, lengths, shared)


def text_lengths(batch: Batch, pairs: bool) -> np.ndarray:
    """[texts, 1] tokens; of pairs, [pairs, 2] those of source and target."""
    lengths = [batch["attention_mask"].sum(1)]
    if pairs:
        asked = batch["labels"] != IGNORED
        lengths.append((asked * torch.arange(1, asked.shape[1] + 1)).amax(1).clamp(min=1))
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
    """Calls an encoder-decoder on joined pairs: the masks and positions of each of its sides are put in its way."""

    encoder: nn.Module
    decoder: nn.Module
    dtype: torch.dtype | None
    """Of masks that are added to scores (eager); None: they are read as true and false (sdpa)."""

    def __call__(self, network: Any, batch: Batch) -> Any:
        """What the model says of the batch (see Joining), logits [rows, target length, vocabulary]."""
        sources, targets = batch["documents"], batch["decoder_documents"]
        # What fills up a row of targets sees the row's last source: a query that sees nothing has no softmax.
        asking = torch.where(targets > 0, targets, sources.amax(1, keepdim=True))
        own, before = _same(sources, sources), _same(targets, targets).tril()
        with ExitStack() as stack:
            stack.enter_context(_with_positions(self.encoder, sources, attention_mask=attention_mask(own, self.dtype)))
            stack.enter_context(_with_positions(self.decoder, targets))
            return network(
                input_ids=batch["input_ids"], attention_mask=attention_mask(_same(asking, sources), self.dtype), use_cache=False,
                decoder_input_ids=batch["decoder_input_ids"], decoder_attention_mask=attention_mask(before, self.dtype),
            )  # fmt: skip


def _same(asking: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    return asking[:, :, None] == asked[:, None, :]


@contextmanager
def _with_positions(side: nn.Module, documents: torch.Tensor, **more: Any) -> Iterator[None]:
    """While this is open, a side of the model is called with `more`, and begins the positions of each text anew."""
    at = document_positions(documents)
    changed = {
        table: _from_table(table, at) for name, table in side.named_modules() if name.endswith("embed_positions")
    }
    if "position_ids" in signature(side.forward).parameters:
        more["position_ids"] = at + first_position_id(side)
    before = side.forward
    changed[side] = lambda *given, **named: before(*given, **{**named, **more})
    held = {module: vars(module).get("forward") for module in changed}  # a device map has put its own there
    for module, forward in changed.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in held.items():
            del module.forward  # else what the class says
            if forward is not None:
                module.forward = forward


def _from_table(table: nn.Module, at: torch.Tensor) -> Any:
    """In the place of a module that gives the embeddings of positions 0, 1, 2 and so on: those `at` [rows, length]."""
    before = table.forward
    if "position_ids" in signature(before).parameters:
        return lambda shape, *_, **__: before(shape, position_ids=at.flatten()).view(*at.shape, -1)
    count = int(at.max()) + 1
    return lambda *_, **__: before(inputs_embeds=torch.empty(1, count, 1, device=at.device))[0][at]


def is_applicable(recipe: Any, data: Any, kind: str) -> bool:
    """Whether the rows of a batch are to be laid end to end, where the model can be told.

    Those of text that is packed, as `data` says, are full already, and a compiled model wants few shapes.
    """
    return not recipe.train.compile and not (kind == "text" and (data.shares or data.blocks))


def row_width(network: PreTrainedModel) -> int:
    """Of rows, where no text is longer; no more than there are positions, though these begin anew: some models hold a
    causal mask of that size.
    """
    limit = None if network.config.is_encoder_decoder else limit_of(network)
    return min(WIDTH, limit or WIDTH)


def choose_padding_free(
    network: PreTrainedModel, loss: TokenLoss, collate: Collator, longest: Sequence[int]
) -> PaddingFree | None:
    """For texts (pairs) of which the longest has so many tokens (source and target); None where the model cannot keep them
    apart, and where its loss is not a sum over tokens, or depends on padding.
    """
    if loss.own or loss.whole_logits or collate.fixed:
        return None
    width = row_width(network)
    if not network.config.is_encoder_decoder:
        texts = find_document_mask(network, causal=loss.shift == 1)
        return texts and PaddingFree(width, texts)
    dtype = network.dtype if network.config._attn_implementation == "eager" else None
    apart = PairMask(network.get_encoder(), network.get_decoder(), dtype)
    return PaddingFree(width, apart) if _separates(network, apart, longest) else None


@torch.no_grad()
def _separates(network: PreTrainedModel, apart: PairMask, longest: Sequence[int]) -> bool:
    """Whether made-up pairs that share rows have the logits that each has alone."""
    shared = [[*MADE_UP[0], tuple(longest)], [*MADE_UP[1]]]
    lengths = np.array([pair for row in shared for pair in row])
    numbers = np.split(np.arange(len(lengths)), np.cumsum([*map(len, shared)])[:-1])
    vocabulary = len(network.get_input_embeddings().weight)
    random = np.random.default_rng(0)
    sources, targets = (
        [random.integers(vocabulary // 2, vocabulary, size=length) for length in side] for side in lengths.T
    )
    read = padded([np.ones(len(ids), np.int64) for ids in sources], 0)
    batch = {"input_ids": padded(sources, 0), "attention_mask": read, "labels": padded(targets, IGNORED)}
    with evaluating(network):
        try:
            joined = {n: t.to(network.device) for n, t in concatenate_rows(network, batch, lengths, numbers).items()}
            together, _ = TokenLoss(0, apart=apart).aligned(network, joined)
        except Exception:  # whatever it is called: the model does not take this
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
