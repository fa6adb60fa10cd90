"""The losses of heads that do not choose one of several classes: numbers, several labels at once, answers in a text.

Each is a mean over the labels of a whole optimiser step, as that of tokens is (loss.py), and equals what transformers computes
for a batch that is a step by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lmtrain.config.eval import LONGEST_ANSWER
from lmtrain.modeling.loss import RowScores, TokenLoss
from lmtrain.preprocessing.batch import IGNORED, Batch


def as_bits(numbers: Any) -> np.ndarray:
    """Numbers as the int32 that have the same bits as their float32: so they travel where class numbers do.

    The bits of IGNORED are those of NaN, so that no number is taken for it.
    """
    return np.asarray(numbers, np.float32).view(np.int32)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse of `as_bits`: float32."""
    return np.asarray(bits).astype(np.int32).view(np.float32)


class LabelLoss(TokenLoss):
    """A loss that a subclass gives for each row, with what is predicted for it."""

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows] loss of each row over its labels [rows, length]; `logits` as in `aligned`."""
        raise NotImplementedError

    def _predictions(self, logits: torch.Tensor, batch: Batch) -> list[np.ndarray]:
        """What is predicted for each row, as many int32 as `answers_per_row`."""
        raise NotImplementedError

    def _total(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._losses(logits, labels).sum()

    @torch.no_grad()
    def score(self, network: Any, batch: Batch) -> RowScores:
        """The losses as `nll`; nothing counts as `correct`, because no class is chosen."""
        logits, labels = self.aligned(network, batch)
        zeros = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        losses = self._losses(logits, labels).to(precise)
        return RowScores(losses, (labels != IGNORED).sum(1), zeros, zeros, self._predictions(logits, batch))


class NumberLoss(LabelLoss):
    """The squared error of a number for each text; labels [rows, 1], and predictions, are the bits of the numbers."""

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        numbers = labels.to(torch.int32).view(torch.float32)
        errors = (logits[..., 0].float() - numbers) ** 2
        return errors.masked_fill(labels == IGNORED, 0.0).sum(1)

    def _predictions(self, logits: torch.Tensor, batch: Batch) -> list[np.ndarray]:
        return [*as_bits(logits[:, 0, :1].float().cpu().numpy())]


class SeveralLabelsLoss(LabelLoss):
    """The binary cross entropy of each class for each text; labels [rows, classes] are 1 or 0.

    Predictions are 1 for each class that is more likely than not.
    """

    def _shifted(self, values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each class has a position of its own: scores [rows, classes, 1]."""
        return values[..., None], labels

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(
            logits[..., 0].float(), labels.clamp(min=0).float(), reduction="none"
        )
        return losses.masked_fill(labels == IGNORED, 0.0).sum(1)

    def _predictions(self, logits: torch.Tensor, batch: Batch) -> list[np.ndarray]:
        return [*(logits[..., 0] > 0).int().cpu().numpy()]


@dataclass(frozen=True)
class SpanLoss(LabelLoss):
    """The cross entropy of the first and of the last token of an answer over the tokens of its row; labels [rows, 2].

    A row whose context has no answer is to choose its first token, as Devlin et al. ("BERT", 2019, section 4.3) do. Padding is
    never chosen, so that the loss of a row does not depend on its batch.
    """

    longest_answer: int = LONGEST_ANSWER

    def _inputs(self, model: Any, batch: Batch) -> Any:
        return super()._inputs(model, {name: tensor for name, tensor in batch.items() if name != "in_context"})

    def _logits(self, output: Any, batch: Batch) -> torch.Tensor:
        """[rows, 2, length]: the scores of each token to be the first, and the last, of the answer."""
        ends = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        return ends.masked_fill(batch["attention_mask"][:, None] == 0, torch.finfo(ends.dtype).min)

    def answers_per_row(self, labels: np.ndarray) -> np.ndarray:
        """The first and the last token of the best answer, and the bits of its score and of that of no answer."""
        return np.full_like(labels, 4)

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(labels.shape).sum(1)

    def _predictions(self, logits: torch.Tensor, batch: Batch) -> list[np.ndarray]:
        """The best answer in the context of each row, see `answers_per_row`."""
        return [
            _best_answer(row, context, self.longest_answer)
            for row, context in zip(logits.cpu(), batch["in_context"].cpu(), strict=True)
        ]


def _best_answer(logits: torch.Tensor, in_context: torch.Tensor, longest: int) -> np.ndarray:
    first, last, score = best_span(logits, in_context, longest)
    return np.array([first, last, *as_bits([score, float(logits[:, 0].sum())])], np.int32)


def span_scores(logits: torch.Tensor, in_context: torch.Tensor, longest: int) -> torch.Tensor:
    """[length, length] score of each answer by its first and last token: the sum of theirs, -inf where there is none.

    `logits` [2, length]; an answer lies `in_context` [length] and has at most `longest` tokens.
    """
    context = in_context == 1
    possible = torch.ones(len(context), len(context), dtype=torch.bool).triu().tril(longest - 1)
    possible &= context[:, None] & context[None, :]
    return (logits[0][:, None] + logits[1][None, :]).masked_fill(~possible, -torch.inf)


def best_span(logits: torch.Tensor, in_context: torch.Tensor, longest: int) -> tuple[int, int, float]:
    """(first token, last token, score) of the best answer, see `span_scores`; the first of equal ones."""
    scores = span_scores(logits, in_context, longest)
    at = int(scores.argmax())
    return at // len(scores), at % len(scores), float(scores.flatten()[at])


LOSSES: dict[str, type[TokenLoss]] = {
    "several": SeveralLabelsLoss,
    "number": NumberLoss,
    "question": SpanLoss,
}
"""Kind of rows -> the loss of its head; other heads choose one of several classes."""
