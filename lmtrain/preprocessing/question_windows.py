"""Windows of a long context, each behind the whole question."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import UsageError
from lmtrain.preprocessing.label_collator import NOT_IN_CONTEXT
from lmtrain.preprocessing.words import check_is_fast

SHARED = 128
"""Tokens that two windows share, unless --doc-stride says otherwise (Devlin et al. 2019)."""


class Windows:
    """Cuts contexts into windows of at most `length` tokens, of which two that follow each other share `stride`."""

    COLUMNS = ("input_ids", "token_type_ids", "begins", "ends")
    """Of each window: tokens, the part that each belongs to, and its characters in the context, NOT_IN_CONTEXT elsewhere."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None):
        """Raises UsageError for a stride that is no shorter than a window, InputError for a tokenizer without characters."""
        check_is_fast(tokenizer)
        self.tokenizer, self.length = tokenizer, length
        self.stride = min(SHARED, length // 3) if stride is None else stride
        self.special = tokenizer.num_special_tokens_to_add(pair=True)
        if self.stride >= length - self.special:
            if stride is None:
                raise UsageError(f"--max-length {length}: leaves no room for question and context")
            raise UsageError(f"--doc-stride {stride}: is no shorter than a window of --max-length {length}")

    def leaves_no_room(self, question: str) -> bool:
        """Whether a question is so long that a window would hold no more of its context than the windows share."""
        tokens = len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        return self.length - self.special - tokens <= self.stride

    def of(self, question: str, context: str) -> list[dict[str, Any]]:
        """The windows of a context, as COLUMNS."""
        encoded = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        windows = []
        for number, ids in enumerate(encoded["input_ids"]):
            in_context = [part == 1 for part in encoded.sequence_ids(number)]
            spans = [
                span if inside and span[1] > span[0] else (NOT_IN_CONTEXT, NOT_IN_CONTEXT)
                for inside, span in zip(in_context, encoded["offset_mapping"][number], strict=True)
            ]
            types = encoded["token_type_ids"][number] if "token_type_ids" in encoded else [0] * len(ids)
            begins, ends = ([span[side] for span in spans] for side in (0, 1))
            windows.append({"input_ids": ids, "token_type_ids": types, "begins": begins, "ends": ends})
        return windows
