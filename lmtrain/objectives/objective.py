"""THE table: what the three objectives differ in. Nothing else in the package asks which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from lmtrain.errors import UsageError
from lmtrain.modeling.loss import TokenLoss, depends_on_padding, ends_with_head, has_own_loss
from lmtrain.objectives import clm, mlm, prompting, samples, seq2seq, token_roles
from lmtrain.preprocessing import batch, denoising, documents
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.train_tokenizer import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Objective:
    auto_model: Any
    """Where the weights go."""
    encode: documents.Encode
    """Rows -> ids."""
    collate: Callable[..., batch.Collator]
    """Ids -> batch."""
    sample: Callable[..., list[samples.Sample]]
    """What the model writes, to look at."""
    answer: Callable[..., list[prompting.Answer]]
    """What the model makes of prompts."""
    tell: Callable[..., samples.RowTexts]
    """A scored row in words."""
    view: token_roles.View
    """How its rows are looked at, and what is learnt from them in words."""
    frame: SpecialTokens
    """Special tokens of a tokenizer trained for it."""
    shift: int = 0
    """1: position t predicts token t + 1."""
    accuracy: str = "token_accuracy"
    top5: str | None = None
    task_type: str | None = None
    """What peft calls it; it has no name for masked language models."""
    transforms: bool = False
    """Whether outputs are generated and compared with references."""

    def frame_for(self, data: Any) -> SpecialTokens:
        """The special tokens of a tokenizer that is trained for it and for what these data are made into."""
        return denoising.special_tokens_for(self.frame, getattr(data, "denoise", "none"))

    def fit(
        self,
        network: PreTrainedModel,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        data: Any,
        seed: int,
        limits: Limits,
    ) -> tuple[batch.Collator, TokenLoss]:
        """The collator and the loss that score this very model, after asking it two questions on a few rows."""
        collator = self.collate(tokenizer, data, seed)
        short, long = (examples[0, int(pick(examples.lengths))] for pick in (np.argmin, np.argmax))
        head_last = ends_with_head(network, collator([short]))
        if depends_on_padding(network, collator([short]), collator([short, long]), head_last):
            collator = self.collate(tokenizer, data, seed, limits.resolved)
        return collator, TokenLoss(self.shift, head_last=head_last)

    def fit_to_train(
        self, network: PreTrainedModel, examples: Examples, loss: TokenLoss, collator: batch.Collator,
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
        AutoModelForCausalLM, clm.encode, clm.collator, clm.sample, clm.complete, samples.describe_row,
        clm.VIEW, SpecialTokens(_SEQUENCE, "<s> $A"), shift=1, task_type="CAUSAL_LM",
    ),
    "mlm": Objective(
        AutoModelForMaskedLM, mlm.encode, mlm.collator, mlm.sample, mlm.fill_in, mlm.describe_row,
        mlm.VIEW,
        SpecialTokens({"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]"}, "[CLS] $A [SEP]"),
        accuracy="masked_accuracy", top5="masked_accuracy_top5",
    ),
    "seq2seq": Objective(
        AutoModelForSeq2SeqLM, seq2seq.encode, seq2seq.collator, seq2seq.sample, seq2seq.transform, samples.describe_row,
        seq2seq.VIEW, SpecialTokens(_SEQUENCE, "$A </s>"), task_type="SEQ_2_SEQ_LM", transforms=True,
    ),
}  # fmt: skip
