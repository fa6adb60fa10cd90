"""Causal language modeling: everything that only `clm` does.

Text, prompts with completions, and chats become token ids; every token is predicted from the tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lmtrain.config.data import ClmData, Data
from lmtrain.data.chats import Chat
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError
from lmtrain.objectives.defaults import Defaults
from lmtrain.objectives.generation import GenerationSettings, decode, end_ids, generate_texts
from lmtrain.objectives.prompting import Answer, PromptingOptions, check_length, write_one
from lmtrain.objectives.samples import PROMPT_TOKENS, Sample
from lmtrain.objectives.token_roles import View
from lmtrain.objectives.views import CAUSAL_VIEW
from lmtrain.preprocessing import chat
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, Row, pad_id, padded_batch, text_starts
from lmtrain.preprocessing.chat_rows import EncodedChats
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    TokenizedDocuments,
    apply_long_policy,
    document_marks,
    finish_examples,
    fit_document,
    split_into_rows,
    start_ledgers,
)
from lmtrain.preprocessing.ragged import GrowingRagged, Ragged
from lmtrain.preprocessing.text_pieces import Piece
from lmtrain.preprocessing.tokenizing import ids_and_bytes, ids_of
from lmtrain.preprocessing.train_tokenizer import SEQUENCE_TOKENS, SpecialTokens


class CausalLM(Defaults):
    """Predict the next token."""

    name = "clm"
    auto_model = AutoModelForCausalLM
    task_type = "CAUSAL_LM"
    special_tokens = SpecialTokens(SEQUENCE_TOKENS, "<s> $A")
    shift = 1
    streams_answers = True

    @property
    def view(self) -> View:
        return CAUSAL_VIEW

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """Columns `input_ids`; `trained` (bool) where not all tokens are; with `measure`, `num_bytes` of each token."""
        assert isinstance(data, ClmData)
        return ENCODERS[rows.kind](rows, tokenizer, data, limits, measure)

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> CausalCollator:
        return CausalCollator(pad_id(tokenizer))

    def misplaced_labels(self, batch: Batch, collator: Any) -> tuple[int, int]:
        """A label is the token at its own position; the loss shifts them."""
        labelled = batch["labels"] != IGNORED
        wrong = labelled & (batch["labels"] != batch["input_ids"])
        return int(wrong.sum()), int(labelled.sum())

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths."""
        assert isinstance(data, ClmData)
        packing = data.packs_blocks and not data.stride if kind == "text" else None
        prompts = True if data.train_on_prompt and kind != "text" else None
        return {"packing": packing, "stride": data.stride, "train_on_prompt": prompts, "on_long": data.on_long}

    @torch.no_grad()
    def sample(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        rows: Sequence[int],
        collator: Collator,
        settings: GenerationSettings,
    ) -> list[Sample]:
        """Input (the prompt or the start of a row), the model's continuation, and the original one as reference."""
        samples = []
        for row in rows:
            content = examples[None, row]
            ids = content["input_ids"]
            cut = min(PROMPT_TOKENS, max(len(ids) // 2, 1))
            if "trained" in content and not content["trained"][0]:
                cut, end = chat.last_answer(content["trained"])
                ids = ids[:end]
            ((output,),) = generate_texts(network, tokenizer, [ids[:cut]], settings)
            shown = [
                decode(tokenizer, part, end_ids(network))
                for part in (ids[:cut], ids[cut : cut + settings.max_new_tokens])
            ]
            samples.append({"input": shown[0], "output": output.text, "reference": shown[1]})
        return samples

    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """The continuation of each prompt. Raises InputError for a prompt that is empty or too long."""
        answers = []
        for prompt in prompts:
            ids = _prompt_ids(tokenizer, prompt, options)
            if not ids:
                raise InputError("the prompt is empty, and this model has no begin token; write something")
            check_length(network, len(ids) + 1, prompt)
            answer = write_one(network, tokenizer, ids, options)
            if isinstance(prompt, Chat) and prompt.ends_with_answer:
                answer = {**answer, "reference": _reference(tokenizer, prompt, end_ids(network))}
            answers.append(answer)
        return answers


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: PromptingOptions) -> list[int]:
    """Input ids of the prompt, with the special tokens of training. Raises UsageError, InputError."""
    if isinstance(prompt, Chat):
        if not tokenizer.chat_template:
            raise UsageError("a chat needs a model with a chat template; this one has none")
        return chat.prompt_ids(tokenizer, prompt.question().messages, "the prompt", prompt.tools)
    if options.chat and tokenizer.chat_template and options.kind in (None, "messages"):
        return chat.prompt_ids(tokenizer, [{"role": "user", "content": prompt}], "the prompt")
    before, _ = document_marks(tokenizer)
    text = prompt_text(prompt) if options.kind == "prompt" else prompt
    return [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _reference(tokenizer: PreTrainedTokenizerBase, prompt: Chat, ends: Collection[int]) -> str:
    """The answer that a chat ends with, as a model would write it; `ends` are the ids that end an output."""
    try:
        ids, trained = chat.encode(tokenizer, prompt.messages, "the prompt", prompt.tools)
    except InputError:  # where its answers are is unknown
        return str(prompt)
    start, end = chat.last_answer(trained)
    return decode(tokenizer, ids[start:end], ends)


def prompt_text(prompt: str) -> str:
    """The prompt, followed by the line break that separates it from its completion."""
    return prompt if prompt[-1:].isspace() else prompt + "\n"


@dataclass(frozen=True)
class CausalCollator:
    """Labels are the input ids. The first token of each text has no label, because nothing precedes it."""

    pad: int
    length: int | None = None
    """Tokens that every row is padded to; None: as long as the longest of its batch."""

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def padded_to(self, lengths: Mapping[str, int]) -> CausalCollator:
        return replace(self, length=lengths["max_length"])

    def __call__(self, rows: list[Row]) -> Batch:
        return padded_batch(rows, [self.scored(row) for row in rows], self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids = row["input_ids"].astype(np.int64)
        labels = np.where(row["trained"], ids, IGNORED) if "trained" in row else ids.copy()
        labels[text_starts(row["lengths"])] = IGNORED
        return ids, labels


# --- rows -> ids -----------------------------------------------------------------------------------------------------


def _encode_text(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: ClmData, limits: Limits, measure: bool
) -> Examples:
    limits = limits.resolve("max_length", data.max_length)
    length = limits["max_length"]
    before, after = document_marks(tokenizer)
    ledgers, policy = start_ledgers(rows), data.on_long or "split"
    stride = data.stride if measure else None
    if stride and stride >= length:
        raise UsageError(
            f"--stride {stride}: has to be less than --max-length {length}, or tokens would have nothing before them"
        )
    sized = measure and tokenizer.is_fast
    texts, sizes = TokenizedDocuments(rows, tokenizer), GrowingRagged()
    for parts, document in texts.encoded(ids_and_bytes if sized else ids_of):
        start = [] if texts.continues(document) else before
        end = after if rows.ends(document[-1]) else []
        texts.begin(document, start)
        if sized:
            sizes.extend([0] * len(start))
            for tokens, bytes_of in parts:
                texts.ids.extend(tokens)
                sizes.extend(bytes_of)
            sizes.extend([0] * len(end))
        else:
            texts.ids.extend(chain.from_iterable(parts))
        texts.ids.extend(end)
        kept = fit_document(ledgers, texts.new_tokens, length, rows, document, policy)
        texts.end(document, kept)
        if sized:
            sizes.close(kept)
    columns = {"input_ids": texts.ids.done(), **({"num_bytes": sizes.done()} if sized else {})}
    if stride:
        windows = {name: column.windows(length, stride) for name, column in columns.items()}
        shown = {name: window for name, (window, _) in windows.items()} | {"trained": windows["input_ids"][1]}
        origins = np.zeros(len(shown["input_ids"]), np.int64)
        return finish_examples(shown, ledgers, rows, origins, limits, warnings=texts.warnings)
    return split_into_rows(texts, columns, length, ledgers, limits, data.packs_blocks)


def _encode_prompts(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: ClmData, limits: Limits, measure: bool
) -> Examples:
    """Prompt and completion are tokenised separately, as they are at inference; a line break separates them."""
    before, after = document_marks(tokenizer)
    prompts = [prompt if answer[:1].isspace() else prompt_text(prompt) for prompt, answer in rows.values]
    answers = [answer for _, answer in rows.values]
    pairs = zip(ids_of(tokenizer, map(Piece, prompts)), ids_of(tokenizer, map(Piece, answers)), strict=True)

    def encoded() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for prompt, answer in pairs:
            ids = np.concatenate([before, prompt, answer, after])
            yield ids, np.arange(len(ids)) >= len(before) + len(prompt)

    return _partly_trained(rows, encoded(), data, limits)


def _encode_chats(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: ClmData, limits: Limits, measure: bool
) -> Examples:
    chats = EncodedChats(rows, tokenizer, data.on_bad)
    examples = _partly_trained(rows, chats, data, limits)
    return replace(examples, warnings=(*chats.warnings(), *examples.warnings))


def _partly_trained(
    rows: Rows, encoded: Iterable[tuple[Sequence[int] | np.ndarray, np.ndarray] | None], data: ClmData, limits: Limits
) -> Examples:
    """One example per row. A row without trained tokens is dropped, one that is None bad; the ledger counts both."""
    if data.stride:
        raise UsageError("--stride is for plain text; a prompt or a chat is scored as one row")
    limits = limits.resolve("max_length", data.max_length)
    length = limits["max_length"]
    policy = data.on_long or "truncate"
    if policy == "split":
        raise UsageError("--on-long split is for plain text; a prompt or a chat is cut with truncate, drop or error")
    ledgers = start_ledgers(rows)
    ids, trained, origins, beyond = [], [], [], 0
    for index, row in enumerate(encoded):
        ledger = ledgers[rows.source(index)]
        if row is None:
            ledger.rows_bad += 1
            continue
        tokens, mask = row
        mask = np.ones_like(mask) if data.train_on_prompt else mask
        untrained = not mask[1 : min(length, len(tokens))].any()
        if untrained and not (policy == "error" and len(tokens) > length):
            ledger.drop(len(tokens))
            beyond += bool(mask[1:].any()) and policy == "truncate"
            continue
        if len(tokens) <= length:
            kept = len(tokens)
            ledger.use(kept)
        else:
            kept = apply_long_policy(ledger, len(tokens), length, rows.location(index), policy)
        if kept:
            ids.append(tokens[:kept])
            trained.append(mask[:kept])
            origins.append(index)
    columns = {"input_ids": Ragged.of(ids), "trained": Ragged.of(trained, np.bool_)}
    examples = finish_examples(columns, ledgers, rows, origins, limits)
    lost = f"{beyond:,} of {len(rows.values):,} chats are left out: what is trained begins beyond {limits.as_flags()}"
    return replace(examples, warnings=(lost,) if beyond and rows.kind == "messages" else ())


ENCODERS: dict[str, Callable[[Rows, PreTrainedTokenizerBase, ClmData, Limits, bool], Examples]] = {
    "text": _encode_text,
    "prompt": _encode_prompts,
    "messages": _encode_chats,
}
"""Kind of rows -> encoder."""
