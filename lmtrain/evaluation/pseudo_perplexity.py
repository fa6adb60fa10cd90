"""Pseudo-perplexity of a masked language model.

Salazar et al., "Masked language model scoring", ACL 2020: PPPL = exp(-1/N Σ_t log P(w_t | all other tokens)).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.modeling.loss import TokenLoss
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator
from lmtrain.runtime import signals


@dataclass(frozen=True)
class PseudoLikelihood:
    """Scores a row once per token, each time with that token masked."""

    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    loss: TokenLoss
    batch_size: int
    """Copies of a row in one forward pass."""

    def score(self, network: Any, ids: np.ndarray, device: torch.device) -> tuple[float, int]:
        """(sum of negative log-likelihoods in nats, tokens) of the row `ids` [length], special tokens left out.

        Raises Stopped.
        """
        positions = np.flatnonzero(~np.isin(ids, self.tokenizer.all_special_ids))
        nll = 0.0
        for start in range(0, len(positions), self.batch_size):
            signals.check()
            batch = self._masked(ids, positions[start : start + self.batch_size])
            scores = self.loss.score(network, {name: tensor.to(device) for name, tensor in batch.items()})
            nll += float(scores.nll.sum())
        return nll, len(positions)

    def _masked(self, ids: np.ndarray, positions: np.ndarray) -> Batch:
        """One copy of the row per position, with that position masked and its token as the only label."""
        copies = np.arange(len(positions))
        inputs = np.tile(ids.astype(np.int64), (len(positions), 1))
        labels = np.full_like(inputs, IGNORED)
        labels[copies, positions] = ids[positions]
        inputs[copies, positions] = self.tokenizer.mask_token_id
        lengths = np.array([len(ids)])
        return self.collator(
            [
                {"input_ids": row, "labels": truth, "lengths": lengths}
                for row, truth in zip(inputs, labels, strict=True)
            ]
        )
