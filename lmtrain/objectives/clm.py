"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.config.data import TextData
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError
from lmtrain.objectives.generation import GenerationSettings, decode, generate_texts
from lmtrain.objectives.prompting import Answer, PromptingOptions, check_length, write_one
from lmtrain.objectives.samples import PROMPT_TOKENS, Sample
from lmtrain.objectives.token_roles import BLUE, GREEN, GREY, PAD, Lines, Look, View, arrays_of, tokens_of
from lmtrain.preprocessing import chat, documents
from lmtrain.preprocessing.batch import (
    IGNORED,
    Batch,
    Collator,
    FixedLengths,
    Row,
    pad_id,
    padded,
    padded_batch,
    text_starts,
)
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    TokenizedDocuments,
    apply_long_policy,
    document_marks,
    documents_of,
    finish_examples,
    fit_document,
    split_into_rows,
    start_ledgers,
)
from lmtrain.preprocessing.ragged import GrowingRagged, Ragged
from lmtrain.preprocessing.tokenizing import ids_and_bytes, ids_of


def complete(
    network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], manner: PromptingOptions
) -> list[Answer]:
    """How a causal model goes on."""
    answers = []
    for prompt in prompts:
        ids = _prompt_ids(tokenizer, prompt, manner)
        if not ids:
            raise InputError("the prompt is empty, and this model has no mark to begin with; write something")
        check_length(network, len(ids) + 1, prompt)
        answers.append(write_one(network, tokenizer, ids, manner))
    return answers


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, manner: PromptingOptions) -> list[int]:
    """The ids that stand before the answer, framed as in training."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and not tokenizer.chat_template:
        raise UsageError("a chat needs a model with a chat template; this one has none")
    if isinstance(prompt, list) or (manner.chat and tokenizer.chat_template and manner.kind in (None, "messages")):
        return chat.prompt(tokenizer, messages, "the prompt")
    before, _ = documents.document_marks(tokenizer)
    text = prompt_text(prompt) if manner.kind == "prompt" else prompt
    return [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@dataclass(frozen=True)
class CausalCollator:
    """Labels are the ids themselves, from the second of a text on: the first is predicted by nothing."""

    pad: int
    length: int | None

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def __call__(self, rows: list[Row]) -> Batch:
        return padded_batch(rows, [self.scored(row) for row in rows], self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids = row["input_ids"].astype(np.int64)
        labels = np.where(row["trained"], ids, IGNORED) if "trained" in row else ids.copy()
        labels[text_starts(row["lengths"])] = IGNORED
        return ids, labels


def collator(
    tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: FixedLengths | None = None
) -> CausalCollator:
    return CausalCollator(pad_id(tokenizer), (fixed or {}).get("max_length"))


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Columns `input_ids`; `trained` (bool) where not all of them are; with `measure`, `num_bytes` of each token."""
    return {"text": _encode_text, "prompt": _encode_prompts, "messages": _encode_chats}[rows.kind](
        rows, tokenizer, data, limits, measure
    )


def _encode_text(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool
) -> Examples:
    length = limits.of("max_length", data.max_length)
    before, after = document_marks(tokenizer)
    ledgers = start_ledgers(rows)
    stride = data.stride if measure else None  # type: ignore[attr-defined]
    if stride and stride >= length:
        raise UsageError(
            f"--stride {stride}: has to be less than --max-length {length}, or tokens would have nothing before them"
        )
    sized = measure and tokenizer.is_fast
    texts, sizes = TokenizedDocuments(rows, tokenizer), GrowingRagged()
    encoded = (ids_and_bytes if sized else ids_of)(tokenizer, rows.values)
    for parts, document in documents_of(rows, encoded):
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
        kept = texts.end(document, lambda tokens, at=document: fit_document(ledgers, tokens, length, rows, at, data))
        if sized:
            sizes.close(kept)
    columns = {"input_ids": texts.ids.done(), **({"num_bytes": sizes.done()} if sized else {})}
    if stride:
        windows = {name: column.windows(length, stride) for name, column in columns.items()}
        shown = {name: window for name, (window, _) in windows.items()} | {"trained": windows["input_ids"][1]}
        return finish_examples(shown, ledgers, rows, np.zeros(len(shown["input_ids"]), int))
    return split_into_rows(columns, length, ledgers, rows, texts, data.blocks)


def _encode_prompts(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool
) -> Examples:
    """Prompt and completion are tokenised apart, as they will be when the model is asked; a line break parts them."""
    before, after = document_marks(tokenizer)
    prompts = [prompt if answer[:1].isspace() else prompt_text(prompt) for prompt, answer in rows.values]
    answers = [answer for _, answer in rows.values]
    pairs = zip(ids_of(tokenizer, prompts), ids_of(tokenizer, answers), strict=True)

    def encoded() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for prompt, answer in pairs:
            ids = np.concatenate([before, prompt, answer, after])
            yield ids, np.arange(len(ids)) >= len(before) + len(prompt)

    return _partly_trained(rows, encoded(), data, limits)


def prompt_text(prompt: str) -> str:
    """A prompt as it stands before its completion."""
    return prompt if prompt[-1:].isspace() else prompt + "\n"


def _encode_chats(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool
) -> Examples:
    encoded = (chat.encode(tokenizer, messages, rows.place(i)) for i, messages in enumerate(rows.values))
    return _partly_trained(rows, encoded, data, limits)


def _partly_trained(rows: Rows, encoded: Iterator[Any], data: TextData, limits: Limits) -> Examples:
    """One example a row; a row of which nothing trained is left is dropped, in the ledger."""
    if data.stride:  # type: ignore[attr-defined]
        raise UsageError("--stride is for plain text; a prompt or a chat is scored as one row")
    length = limits.of("max_length", data.max_length)
    policy = data.on_long or "truncate"
    if policy == "split":
        raise UsageError("--on-long split is for plain text; a prompt or a chat is cut with truncate, drop or error")
    ledgers = start_ledgers(rows)
    ids, trained, origins = [], [], []
    for index, (tokens, mask) in enumerate(encoded):
        ledger = ledgers[rows.source(index)]
        mask = np.ones_like(mask) if data.train_on_prompt else mask  # type: ignore[attr-defined]
        untrained = not mask[1 : min(length, len(tokens))].any()
        if untrained and not (policy == "error" and len(tokens) > length):
            ledger.drop(len(tokens))
            continue
        if len(tokens) <= length:
            kept = len(tokens)
            ledger.use(kept)
        else:
            kept = apply_long_policy(ledger, len(tokens), length, rows.place(index), policy)
        if kept:
            ids.append(tokens[:kept])
            trained.append(mask[:kept])
            origins.append(index)
    columns = {"input_ids": Ragged.of(ids), "trained": Ragged.of(trained, np.bool_)}
    return finish_examples(columns, ledgers, rows, origins)


def token_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """`trained` are predicted from what stands before them, `prompt` and `ignored` (the first of a text) are not."""
    ids, labels, real = arrays_of(batch)
    asked = [row.get("trained", np.ones(len(row["input_ids"]), bool)) for row in rows]
    prompt = padded([~some for some in asked], 0, ids.shape[1]).numpy() == 1
    role = np.select([labels != IGNORED, prompt], ["trained", "prompt"], "ignored")
    return [{"tokens": line} for line in tokens_of(ids, role, labels, real)]


VIEW = View(
    "The model learns to predict each token from the tokens before it, and sees nothing of what comes after. "
    "The end mark is predicted like any other token, so it learns to stop; what it is asked (a prompt, a user's turn) "
    "is only read.",
    token_roles,
    {
        "trained": Look("trained", "predicted from what stands before it", "cat", GREEN),
        "prompt": Look("prompt", "read, not predicted", "‹cat›", BLUE, ("‹", "›")),
        "ignored": Look(
            "ignored", "begins a text, or a piece of one; nothing is before it", "«cat»", GREY, ("«", "»")
        ),
        "pad": PAD,
    },
)


@torch.no_grad()
def sample(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collator,
    settings: GenerationSettings,
) -> list[Sample]:
    """The start of a row (of a prompt row: the prompt), how the model goes on, and how the text does."""
    samples = []
    for row in range(min(count, len(examples))):
        content = examples[None, row]
        ids = content["input_ids"]
        cut = min(PROMPT_TOKENS, max(len(ids) // 2, 1))
        if "trained" in content and not content["trained"][0]:
            cut = max(int(np.argmax(content["trained"])), 1)
        ((output,),) = generate_texts(network, tokenizer, [ids[:cut]], settings)
        samples.append({
            "input": decode(tokenizer, ids[:cut]),
            "output": output.text,
            "reference": decode(tokenizer, ids[cut : cut + settings.max_new_tokens]),
        })  # fmt: skip
    return samples
