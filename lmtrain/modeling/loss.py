"""The exact loss: the mean negative log-likelihood over the supervised tokens of a whole optimiser step.

transformers' Trainer believes that every model divides by `num_items_in_batch`; most masked and encoder-decoder
models do not, so that their loss and gradient come out multiplied by the number of micro-batches and processes. Here
the sum over a micro-batch is divided by the count over the step, whatever the model would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
import torch.nn.functional as F

from lmtrain.modeling.linear_cross_entropy import cross_entropy
from lmtrain.modeling.output_head import later_bias, replaced_head, without_head
from lmtrain.preprocessing.batch import IGNORED, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


OWN_LOSS_TOLERANCE = 2e-5
"""Relative; on random weights even a quite different loss comes out close to the log of the vocabulary."""

HEAD_TOLERANCE = 1e-5
"""Relative to the largest logit: a projection of fewer rows at once adds up in another order."""

AT_ONCE = 128
"""Positions whose logits are held at once."""

PADDING_TOLERANCE = 1e-4
"""Relative to the largest logit or state; what padding does by rounding alone is a hundred times less."""


@dataclass(frozen=True)
class RowScores:
    """What evaluation keeps of a batch, per row; no logits.

    `nll` [rows] float64: sum of the negative log-likelihood (nats) of the supervised tokens; `tokens`, `correct` and
    `correct_top5` [rows] int64: how many there are, and how many of them are the best guess or among the best five;
    `guesses`: of each row the best guess at every supervised token.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    correct: torch.Tensor
    correct_top5: torch.Tensor
    guesses: list[np.ndarray]


@dataclass(frozen=True)
class TokenLoss:
    """The loss of an objective.

    `shift` is 1 where position t predicts label t + 1 (causal), 0 where logits and labels are aligned. `own` says
    that the model's training loss is more than the cross entropy of its logits (ProphetNet's future tokens, auxiliary
    terms of mixtures of experts): then its mean is weighted by its tokens, which is exact as well. `head_last` says
    that the logits are what the output embeddings give, and a constant bias: then the supervised positions alone are
    projected, some at a time, and the logits of a batch are never held (projection.py). `apart` calls the model on a batch
    in which texts share rows so that they are kept apart (apart.py, joining.py); without it they read one another.
    """

    shift: int
    label_smoothing: float = 0.0
    own: bool = False
    head_last: bool = False
    apart: Callable[[Any, Batch], Any] | None = None
    whole_logits: bool = False
    """In training, all logits after all: where the head's weights are not at hand by themselves (sharded, compiled)."""

    def __call__(self, network: Any, batch: Batch, items: torch.Tensor) -> torch.Tensor:
        """The share of this micro-batch in the loss of a step with `items` supervised tokens; summed up it is exact.

        `network` may be wrapped (DistributedDataParallel); `batch` holds `labels` [rows, length].
        """
        if self.own:
            output = self._output(network, batch)
            tokens = (batch["labels"] != IGNORED).sum()
            # A micro-batch without a label has no mean: nothing, but with a gradient, so that processes keep step.
            return output.loss * tokens / items.clamp(min=1) if tokens else output.logits.sum() * 0.0
        if self.head_last and not self.whole_logits:
            return self._projected(network, batch, items)
        logits, labels = self.aligned(network, batch)
        total = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        # A step in which chance masks nothing at all has a loss of 0, not 0 / 0.
        return total / items.clamp(min=1)

    def _projected(self, network: Any, batch: Batch, items: torch.Tensor) -> torch.Tensor:
        model, labels = unwrapped(network), batch["labels"]
        head, bias = model.get_output_embeddings(), later_bias(model)

        def loss(states: torch.Tensor) -> torch.Tensor:
            some, truth = (states[:, : -self.shift], labels[:, self.shift :]) if self.shift else (states, labels)
            at = truth != IGNORED
            total = cross_entropy(some[at], head, truth[at], 1 / items.clamp(min=1), self.label_smoothing, bias)
            return total.expand(*states.shape[:2], 1)

        # Inside of the model, so that its wrappers (DistributedDataParallel) see the head being used.
        with replaced_head(model, head, loss):
            everywhere, _ = replace(self, shift=0).aligned(network, batch)
        return everywhere[0, 0, 0]

    def aligned(self, network: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [rows, length, vocabulary], labels [rows, length]) so that position t is scored on label t."""
        inputs = dict(batch)
        labels = inputs.pop("labels")
        model = unwrapped(network)
        if model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = decoder_inputs(model, labels)
        logits = self._output(network, inputs).logits
        if self.shift:
            return logits[:, : -self.shift], labels[:, self.shift :]
        return logits, labels

    def _output(self, network: Any, batch: Batch) -> Any:
        """What the model says of a batch."""
        if "documents" in batch and self.apart:
            return self.apart(network, batch)
        return network(**{name: tensor for name, tensor in batch.items() if name != "documents"})

    @torch.no_grad()
    def score(self, network: Any, batch: Batch) -> RowScores:
        """Plain log-likelihoods, never smoothed, never the model's own loss: what perplexity is made of."""
        model = unwrapped(network)
        head, bias = (model.get_output_embeddings(), later_bias(model)) if self.head_last else (None, None)
        with without_head(model, head):
            states, labels = self.aligned(network, batch)
        precise = torch.float32 if states.device.type == "mps" else torch.float64
        counted = labels != IGNORED
        nll, correct, top5 = (torch.zeros(len(labels), dtype=d, device=labels.device) for d in (precise, int, int))
        guesses = []
        for row in range(len(labels)):
            at = counted[row]
            best_of_row = [torch.empty(0, dtype=torch.long, device=labels.device)]
            for some, truth in zip(states[row][at].split(AT_ONCE), labels[row][at].split(AT_ONCE), strict=True):
                scores = (head(some) if head else some).float()
                scores = scores if bias is None else scores + bias
                nll[row] += F.cross_entropy(scores, truth, reduction="none").to(precise).sum()
                best = scores.topk(min(5, scores.shape[-1]), dim=-1).indices
                correct[row] += (best[:, 0] == truth).sum()
                top5[row] += (best == truth[:, None]).sum()
                best_of_row.append(best[:, 0])
            guesses.append(torch.cat(best_of_row).to(torch.int32).cpu().numpy())
        return RowScores(nll, counted.sum(1), correct, top5, guesses)


def decoder_inputs(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """The labels one position later, behind the start token: by the model's own rule where it has one."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)  # M2M100, NLLB, Blenderbot
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, model.config.pad_token_id)


def unwrapped(network: Any) -> PreTrainedModel:
    from transformers import PreTrainedModel

    if isinstance(network, PreTrainedModel):
        return network  # accelerate would look for DeepSpeed on the disk, at every step
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(network)


@torch.no_grad()
def has_own_loss(network: PreTrainedModel, batch: Batch, shift: int) -> bool:
    """Whether the model's loss on `batch` differs from the cross entropy of its logits.

    Asked of the model itself rather than kept as a list of names, which would be out of date with the next release.
    """
    with evaluating(network), catch_warnings():
        simplefilter("ignore")  # a pair of encoder and decoder tells of its past wherever it is given labels
        own = getattr(network(**batch), "loss", None)
        count = (batch["labels"] != IGNORED).sum()
        if own is None or not count:
            return False
        plain = TokenLoss(shift)(network, batch, count)
        return bool((own - plain).abs() > OWN_LOSS_TOLERANCE * plain.abs())


@torch.no_grad()
def ends_with_head(network: PreTrainedModel, batch: Batch) -> bool:
    """Whether the logits are what the output embeddings make of the states before them (no bias or cap follows)."""
    head = network.get_output_embeddings()
    if head is None:
        return False
    with evaluating(network):
        logits, _ = TokenLoss(0).aligned(network, batch)
        try:
            with without_head(network, head):
                states, _ = TokenLoss(0).aligned(network, batch)
        except RuntimeError:  # something behind the head wants logits: ProphetNet's streams
            return False
        if states.shape[:2] != logits.shape[:2] or states.shape[-1] != getattr(head, "in_features", None):
            return False
        bias = later_bias(network)
        made = head(states) if bias is None else head(states) + bias
        return bool((made - logits).abs().max() <= HEAD_TOLERANCE * logits.abs().max())


@torch.no_grad()
def depends_on_padding(network: PreTrainedModel, alone: Batch, together: Batch, head_last: bool) -> bool:
    """Whether what the model says of a row depends on how far its batch is padded.

    `alone` holds one row, `together` the same row first in a longer batch. No model should; ProphetNet does (the
    relative positions of its predicting streams are mixed up over the length of the batch).
    """
    head = network.get_output_embeddings() if head_last else None
    with evaluating(network), without_head(network, head):
        (bare, _), (padded, _) = (TokenLoss(0).aligned(network, batch) for batch in (alone, together))
        bare = bare[0][: min(bare.shape[1], padded.shape[1])]
        counted = (alone["labels"][0] != IGNORED)[: len(bare)]
        gap = (bare - padded[0][: len(bare)])[counted].abs()
        return bool(len(gap) and gap.max() > PADDING_TOLERANCE * bare.abs().max())


@contextmanager
def evaluating(network: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and afterwards as it was."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
