"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.objectives.generation import COMPLETION_TOKENS, GenerationSettings, decode
from lmtrain.objectives.prompting import Answer, PromptingOptions, check_length, text_of
from lmtrain.objectives.samples import RowTexts, Sample
from lmtrain.objectives.token_roles import CYAN, GREY, ORANGE, PAD, RED, Lines, Look, View, arrays_of, tokens_of
from lmtrain.preprocessing import whole_word_masking
from lmtrain.preprocessing.batch import IGNORED, Batch, Collator, FixedLengths, Row, pad_id, padded_batch, text_starts
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    TokenizedDocuments,
    documents_of,
    fit_document,
    split_into_rows,
    start_ledgers,
)
from lmtrain.preprocessing.hashed_random import uniform
from lmtrain.preprocessing.tokenizing import check_words, ids_and_words, ids_of, special_token_ids

MASKS = ("[MASK]", "<mask>")


@torch.no_grad()
def fill_in(
    network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], manner: PromptingOptions
) -> list[Answer]:
    """Each text with its masks filled, each by its most probable token, and the best candidates of each."""
    if tokenizer.mask_token is None:
        raise InputError("the tokenizer has no mask token, so there is nothing to fill")
    answers = []
    for prompt in prompts:
        text = text_of(prompt)
        for mask in MASKS:
            text = text.replace(mask, tokenizer.mask_token)
        inputs = torch.tensor([tokenizer(text)["input_ids"]], device=network.device)
        check_length(network, inputs.shape[1], prompt)
        at = (inputs[0] == tokenizer.mask_token_id).nonzero()[:, 0]
        if not len(at):
            raise InputError(
                f"{visible(text)!r}: nothing to fill; write {tokenizer.mask_token} where words are missing"
            )
        logits = network(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, at, : len(tokenizer)]
        top = logits.float().softmax(-1).topk(min(manner.candidates, len(tokenizer)))
        inputs[0, at] = top.indices[:, 0]
        masks = [
            [
                {"token": tokenizer.decode([int(i)]).strip(), "probability": float(p)}
                for i, p in zip(*best, strict=True)
            ]
            for best in zip(top.indices, top.values, strict=True)
        ]
        answers.append({"output": decode(tokenizer, inputs[0]), "masks": masks})
    return answers


@dataclass(frozen=True)
class MaskedCollator:
    """A share of the tokens is to be predicted; of these most are masked, some replaced, some kept (BERT, 2018).

    Of words and spans see masking.py. What becomes of a token is drawn for each by itself, of a span for all of it.
    """

    pad: int
    length: int | None
    seed: int
    mask: int
    special: np.ndarray
    ordinary: np.ndarray
    """The ids that can be masked, and put in the place of others."""
    probability: float
    to_mask: float
    to_replace: float
    what: str = "token"
    """Or word, or span."""
    schedule: tuple[float, float] | None = None

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def __call__(self, rows: list[Row]) -> Batch:
        scored = [self.scored(row) if "labels" not in row else (row["input_ids"], row["labels"]) for row in rows]
        return padded_batch(rows, scored, self.pad, self.length, self.length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = row["input_ids"].astype(np.int64), row["lengths"]
        numbers = np.repeat(row["numbers"], lengths)
        positions = np.arange(len(ids)) - np.repeat(text_starts(lengths), lengths)
        key = self.seed, 0 if row["epoch"] is None else row["epoch"] + 1
        chance, fate, other = (uniform((*key, draw), numbers, positions) for draw in range(3))
        free = ~np.isin(ids, self.special)
        if self.what == "token":
            chosen = (chance < self.share(row)) & free
        else:
            chosen, place = whole_word_masking.choose(
                row["word_starts"], free, lengths, row["numbers"], self.share(row), key, self.what == "span"
            )
            # Along the window every span is as likely to lie anywhere: its first part is masked, and so on.
            fate = place if self.what == "span" else fate
        others = self.ordinary[(other * len(self.ordinary)).astype(np.int64)]
        replaced = np.where(fate < self.to_mask + self.to_replace, others, ids)
        shown = np.where(fate < self.to_mask, self.mask, replaced)
        return np.where(chosen, shown, ids), np.where(chosen, ids, IGNORED)

    def share(self, row: Row) -> float:
        """Of the tokens, how many are to be predicted."""
        if self.schedule is None or row["epoch"] is None:
            return self.probability
        first, last = self.schedule
        return first + (last - first) * row["progress"]


def collator(
    tokenizer: PreTrainedTokenizerBase, data: Any, seed: int, fixed: FixedLengths | None = None
) -> MaskedCollator:
    """Raises InputError where the tokenizer has no mask token, or knows no words where they are to be masked."""
    if tokenizer.mask_token_id is None:
        raise InputError("the tokenizer has no mask token, so nothing can be masked: "
                         "use a masked model's own, or train one with --tokenizer wordpiece:8000")  # fmt: skip
    if data.masking != "token":
        check_words(tokenizer)
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    to_mask, to_replace, _ = (int(part) / 100 for part in data.mask_split.split("/"))
    return MaskedCollator(
        pad_id(tokenizer), (fixed or {}).get("max_length"), seed, tokenizer.mask_token_id, special, ordinary,
        data.mask_probability, to_mask, to_replace, data.masking, data.schedule,
    )  # fmt: skip


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Column `input_ids`, every row framed as the tokenizer frames a text ([CLS] … [SEP]).

    Where words are masked, `word_starts` (bool): whether a token begins one, or is none of the text.
    """
    length = limits.of("max_length", data.max_length)
    before, after = special_token_ids(tokenizer)
    room = length - len(before) - len(after)
    if room < 1:
        raise UsageError(f"--max-length {length}: leaves no room between {len(before) + len(after)} special tokens")
    ledgers = start_ledgers(rows)
    separator = after[:1] if data.blocks else []
    in_words = data.masking != "token"
    texts = TokenizedDocuments(rows, tokenizer, "word_starts" if in_words else None)
    encoded = (ids_and_words if in_words else ids_of)(tokenizer, rows.values)
    for parts, document in documents_of(rows, encoded):
        followed = rows.more or document[-1] + 1 < len(rows.values)
        parting = separator if followed and rows.ends(document[-1]) else []
        texts.begin(document)
        if in_words:
            texts.take(chain(parts, [(parting, [True] * len(parting))]))
        else:
            texts.ids.extend(chain(chain.from_iterable(parts), parting))
        texts.end(document, lambda tokens, at=document: fit_document(ledgers, tokens, room, rows, at, data))
    columns = {name: column.done() for name, column in texts.columns.items()}
    return split_into_rows(columns, room, ledgers, rows, texts, data.blocks, (before, after))


def token_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """`masked`, `replaced` and `kept` are predicted, from all that is shown; `ignored` are not."""
    ids, labels, real = arrays_of(batch)
    fates = [labels == IGNORED, ids == labels, ids == tokenizer.mask_token_id]
    role = np.select(fates, ["ignored", "kept", "masked"], "replaced")
    return [{"tokens": line} for line in tokens_of(ids, role, labels, real)]


VIEW = View(
    "A few tokens are hidden, exchanged or left as they are, and the model learns to tell from both sides what stood "
    "there. All others are only read, and every epoch draws anew which ones are asked for.",
    token_roles,
    {
        "masked": Look("masked", "hidden; cat is to be predicted", "[MASK=cat]", RED, form="[MASK={label}]"),
        "replaced": Look("replaced", "dog is shown, cat is to be predicted", "{dog=cat}", ORANGE,
                         form="{{{token}={label}}}"),
        "kept": Look("kept", "shown as it is, and to be predicted", "(cat)", CYAN, form="({token})"),
        "ignored": Look("ignored", "read, not predicted", "cat", GREY),
        "pad": PAD,
    },
)  # fmt: skip


@torch.no_grad()
def sample(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collator,
    settings: GenerationSettings,
) -> list[Sample]:
    """The start of a row with its masks, with the model's best guesses in their places, and as it was."""
    samples = []
    for row in range(min(count, len(examples))):
        batch = {name: tensor.to(network.device) for name, tensor in collate([examples[None, row]]).items()}
        labels = batch.pop("labels")[0, :COMPLETION_TOKENS]
        shown = batch["input_ids"][0, :COMPLETION_TOKENS]
        asked = labels != IGNORED
        best = network(**batch).logits[0, :COMPLETION_TOKENS].argmax(-1)
        texts = describe_row(tokenizer, *(x.cpu().numpy() for x in (
            shown, torch.where(asked, best, shown), torch.where(asked, labels, shown), asked)))  # fmt: skip
        samples.append({"input": texts["source"], "output": texts["prediction"], "reference": texts["references"][0]})
    return samples


def describe_row(
    tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, guessed: np.ndarray, truth: np.ndarray, asked: np.ndarray
) -> RowTexts:
    """The row with its masks, with the best guesses in their places, and as it was."""
    masked = np.where(asked, tokenizer.mask_token_id, shown)
    return {
        "source": tokenizer.decode(masked.tolist()),
        "prediction": decode(tokenizer, guessed),
        "references": [decode(tokenizer, truth)],
    }
