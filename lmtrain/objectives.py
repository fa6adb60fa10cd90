"""THE table: what the three objectives differ in. Nothing else in the package asks which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)

from lmtrain import answers, collate, denoise, encode, roles, samples
from lmtrain.dataset import Examples, Limits
from lmtrain.errors import UsageError
from lmtrain.loss import TokenLoss, has_own_loss, is_head_last, reads_padding
from lmtrain.tokenizer import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Objective:
    auto_model: Any
    """Where the weights go."""
    encode: encode.Encode
    """Rows -> ids."""
    collate: Callable[..., collate.Collate]
    """Ids -> batch."""
    sample: Callable[..., list[samples.Sample]]
    """What the model writes, to look at."""
    answer: Callable[..., list[answers.Answer]]
    """What the model makes of prompts."""
    tell: Callable[..., samples.Told]
    """A scored row in words."""
    view: roles.View
    """How its rows are looked at, and what is learnt from them in words."""
    frame: Frame
    """Special tokens of a tokenizer trained for it."""
    shift: int = 0
    """1: position t predicts token t + 1."""
    accuracy: str = "token_accuracy"
    top5: str | None = None
    task_type: str | None = None
    """What peft calls it; it has no name for masked language models."""
    transforms: bool = False
    """Whether outputs are generated and compared with references."""

    def frame_for(self, data: Any) -> Frame:
        """The special tokens of a tokenizer that is trained for it and for what these data are made into."""
        return denoise.frame_for(self.frame, getattr(data, "denoise", "none"))

    def fit(
        self,
        network: PreTrainedModel,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        data: Any,
        seed: int,
        limits: Limits,
    ) -> tuple[collate.Collate, TokenLoss]:
        """The collator and the loss that score this very model, after asking it two questions on a few rows."""
        collator = self.collate(tokenizer, data, seed)
        short, long = (examples[0, int(pick(examples.lengths))] for pick in (np.argmin, np.argmax))
        head_last = is_head_last(network, collator([short]))
        if reads_padding(network, collator([short]), collator([short, long]), head_last):
            collator = self.collate(tokenizer, data, seed, limits.resolved)
        return collator, TokenLoss(self.shift, head_last=head_last)

    def fit_to_train(
        self, network: PreTrainedModel, examples: Examples, loss: TokenLoss, collator: collate.Collate,
        label_smoothing: float,
    ) -> TokenLoss:  # fmt: skip
        """The loss that trains it, after asking whether the model has one of its own.

        Raises UsageError where that cannot be smoothed.
        """
        rows = [examples[0, row] for row in range(min(len(examples), 4))]
        own = has_own_loss(network, collator(rows), self.shift)
        if own and label_smoothing:
            raise UsageError("--label-smoothing: this model has a training loss of its own, which cannot be smoothed")
        return replace(loss, label_smoothing=label_smoothing, own=own)


_SEQUENCE = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

OBJECTIVES = {
    "clm": Objective(
        AutoModelForCausalLM, encode.causal, collate.causal, samples.causal, answers.complete, samples.tell_causal,
        roles.CAUSAL, Frame(_SEQUENCE, "<s> $A"), shift=1, task_type="CAUSAL_LM",
    ),
    "mlm": Objective(
        AutoModelForMaskedLM, encode.masked, collate.masked, samples.masked, answers.fill_in, samples.tell_masked,
        roles.MASKED,
        Frame({"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]"}, "[CLS] $A [SEP]"),
        accuracy="masked_accuracy", top5="masked_accuracy_top5",
    ),
    "seq2seq": Objective(
        AutoModelForSeq2SeqLM, encode.pairs, collate.pairs, samples.pairs, answers.transform, samples.tell_causal,
        roles.PAIRS, Frame(_SEQUENCE, "$A </s>"), task_type="SEQ_2_SEQ_LM", transforms=True,
    ),
}  # fmt: skip
