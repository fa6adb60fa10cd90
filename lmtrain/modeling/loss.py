"""The exact loss: the mean negative log-likelihood over the supervised tokens of a whole optimiser step.

transformers' Trainer assumes that every model divides by `num_items_in_batch`; most masked and encoder-decoder
models do not, so that their loss and gradient come out multiplied by the number of micro-batches and processes. Here
the sum over a micro-batch is divided by the count over the step, whatever the model would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lmtrain.modeling.linear_cross_entropy import cross_entropy
from lmtrain.modeling.output_head import later_bias, replaced_head, without_head
from lmtrain.modeling.sharding import gathered
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
    """The scores of a batch, per row, without logits.

    `nll` [rows] float64: sum of the negative log-likelihood (nats) of the supervised tokens; `tokens`, `correct` and
    `correct_top5` [rows] int64: their number, and how many have the highest score or are among the best five;
    `predictions`: the most likely token at each supervised position, one array a row.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    correct: torch.Tensor
    correct_top5: torch.Tensor
    predictions: list[np.ndarray]


class DocumentAttention(Protocol):
    """Runs a model on rows that several texts share, so that no text attends to another."""

    def prepare(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """(the model's arguments, a context that is open while it runs); `inputs` hold `documents`."""


@dataclass(frozen=True)
class TokenLoss:
    """The loss of an objective: the mean negative log-likelihood over the supervised tokens of a step."""

    shift: int
    """1: position t predicts label t + 1 (causal); 0: logits and labels are aligned."""
    label_smoothing: float = 0.0
    own: bool = False
    """The model's training loss is more than the cross entropy of its logits (ProphetNet's future tokens, auxiliary terms
    of mixtures of experts). Its mean is then weighted by its tokens, which is exact as well."""
    head_last: bool = False
    """The logits are what the output embeddings give, plus a constant bias. Then only the supervised positions are
    projected, a few at a time, and the logits of a batch are never held (linear_cross_entropy.py)."""
    document_attention: DocumentAttention | None = None
    """Separates texts that share rows (document_mask.py, padding_free.py); without it they attend to each other."""
    whole_logits: bool = False
    """In training, compute all logits after all: the head's weights are sharded or compiled."""

    def __call__(self, network: nn.Module, batch: Batch, items: torch.Tensor) -> torch.Tensor:
        """The share of this micro-batch in the loss of a step with `items` supervised tokens; the shares add up exactly.

        `network` may be wrapped (DistributedDataParallel); `batch` holds `labels` [rows, length].
        """
        model, labels = unwrapped(network), batch["labels"]
        items = items.clamp(min=1)  # a step in which no token is masked has a loss of 0, not 0 / 0
        inputs, separated = self._inputs(model, batch)
        projects = self.head_last and not self.whole_logits and not self.own
        with separated, self._projected(model, labels, items) if projects else nullcontext():
            output = network(**inputs)
        if self.own:
            tokens = (labels != IGNORED).sum()
            # A micro-batch without a label has no mean: 0, but with a gradient, so that processes stay in step.
            return output.loss * tokens / items if tokens else output.logits.sum() * 0.0
        if projects:
            return output.logits[0, 0, 0]
        return self._total(*self._shifted(self._logits(output, batch), labels)) / items

    def _total(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of all labels [rows, length] together."""
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def _logits(self, output: Any, batch: Batch) -> torch.Tensor:
        """The scores that the model gives: [rows, length, classes], or [rows, classes] of texts that have a label."""
        return output.logits

    def _projected(
        self, model: PreTrainedModel, labels: torch.Tensor, items: torch.Tensor
    ) -> AbstractContextManager[None]:
        """While open, the model's logits all are the loss: its head is called inside the model, as wrappers expect."""
        head, bias = model.get_output_embeddings(), later_bias(model)

        def loss(states: torch.Tensor) -> torch.Tensor:
            some, truth = self._shifted(states, labels)
            at = truth != IGNORED
            total = cross_entropy(some[at], head, truth[at], 1 / items, self.label_smoothing, bias)
            return total.repeat(*states.shape[:2], 1)  # no view, which FSDP2 warns of

        return replaced_head(model, head, loss)

    def _inputs(self, model: PreTrainedModel, batch: Batch) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """(the model's arguments, a context that is open while it runs)."""
        inputs: dict[str, Any] = dict(batch)
        labels = inputs["labels"]
        if not self.own:
            del inputs["labels"]
            if model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
                inputs["decoder_input_ids"] = decoder_inputs(model, labels)
        if "documents" in inputs and self.document_attention:
            return self.document_attention.prepare(inputs)
        inputs.pop("documents", None)
        return inputs, nullcontext()

    def _shifted(self, values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(values [rows, length, …], labels [rows, length]) so that position t is scored on label t.

        The logits [rows, classes] of a text's label become those of its only position.
        """
        values = values if values.dim() == 3 else values[:, None]
        return (values[:, : -self.shift], labels[:, self.shift :]) if self.shift else (values, labels)

    def aligned(self, network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [rows, length, vocabulary], labels [rows, length]) so that position t is scored on label t."""
        inputs, separated = replace(self, own=False)._inputs(unwrapped(network), batch)
        with separated:
            return self._shifted(self._logits(network(**inputs), batch), batch["labels"])

    def answers_per_row(self, labels: np.ndarray) -> np.ndarray:
        """[rows] how many predictions `score` has for rows with so many `labels`."""
        return labels

    @torch.no_grad()
    def score(self, network: Any, batch: Batch) -> RowScores:
        """Plain log-likelihoods, never smoothed, never the model's own loss: the basis of perplexity."""
        model = unwrapped(network)
        head, bias = (model.get_output_embeddings(), later_bias(model)) if self.head_last else (None, None)
        with without_head(model, head):
            states, labels = self.aligned(network, batch)
        precise = torch.float32 if states.device.type == "mps" else torch.float64
        counted = labels != IGNORED
        nll, correct, top5 = (
            torch.zeros(len(labels), dtype=d, device=labels.device) for d in (precise, torch.int64, torch.int64)
        )
        predictions = []
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
            predictions.append(torch.cat(best_of_row).to(torch.int32).cpu().numpy())
        return RowScores(nll, counted.sum(1), correct, top5, predictions)


def decoder_inputs(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """The labels one position later, behind the start token: by the model's own rule where it has one."""
    if shift_right := getattr(model, "prepare_decoder_input_ids_from_labels", None):
        return shift_right(labels=labels)
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

    Found by running the model; a list of names would be out of date with the next release.
    """
    with evaluating(network), catch_warnings():
        simplefilter("ignore")  # a pair of encoder and decoder warns about its past wherever it is given labels
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
def depends_on_padding(
    network: PreTrainedModel, loss: TokenLoss, alone: Batch, together: Batch, head_last: bool
) -> bool:
    """Whether the logits of a row depend on how far its batch is padded.

    `alone` holds one row, `together` the same row first in a longer batch. No model should; ProphetNet does (the
    relative positions of its predicting streams are mixed up over the length of the batch).
    """
    head = network.get_output_embeddings() if head_last else None
    with evaluating(network), without_head(network, head):
        (bare, _), (padded, _) = (loss.aligned(network, batch) for batch in (alone, together))
        bare = bare[0][: min(bare.shape[1], padded.shape[1])]
        counted = (alone["labels"][0] != IGNORED)[: len(bare)]
        gap = (bare - padded[0][: len(bare), : bare.shape[-1]])[counted].abs()
        return bool(len(gap) and gap.max() > PADDING_TOLERANCE * bare.abs().max())


@contextmanager
def evaluating(network: PreTrainedModel) -> Iterator[None]:
    """While open, the model is in evaluation mode, without dropout. All processes open it for a sharded one (`gathered`)."""
    was_training = network.training
    network.eval()
    try:
        with gathered(network):
            yield
    finally:
        network.train(was_training)
