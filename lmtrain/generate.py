"""What a model writes: completions, filled masks, transformed texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.collate import IGNORED, Collate, pad_id, padded
from lmtrain.encode import Examples

PROMPT_TOKENS, COMPLETION_TOKENS = 24, 40


@dataclass(frozen=True)
class Settings:
    """How to generate: beams (1 is greedy) and the most tokens of an output."""

    num_beams: int = 1
    max_new_tokens: int = COMPLETION_TOKENS


def decode(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    """Text of ids without special tokens; ids beyond the vocabulary are left out rather than crash."""
    return tokenizer.decode([int(i) for i in ids if 0 <= int(i) < len(tokenizer)], skip_special_tokens=True)


@torch.no_grad()
def transform(
    network: Any, tokenizer: PreTrainedTokenizerBase, examples: Examples, rows: list[int], batch_size: int,
    settings: Settings,
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """(row, output text) for each source row, the longest first so that a batch is of one length."""
    column = examples.columns["input_ids"]
    order = sorted(rows, key=lambda row: -len(column[row]))
    pad = pad_id(tokenizer)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        sources = [column[row] for row in chosen]
        outputs = network.generate(
            input_ids=padded(sources, pad).to(network.device),
            attention_mask=padded([np.ones(len(ids)) for ids in sources], 0).to(network.device),
            max_new_tokens=settings.max_new_tokens,
            num_beams=settings.num_beams,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad,
        )
        yield from ((row, decode(tokenizer, ids)) for row, ids in zip(chosen, outputs, strict=True))


Sample = dict[str, str]


@torch.no_grad()
def sample_causal(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collate,
    settings: Settings,
) -> list[Sample]:
    """The start of a row (of a prompt row: the prompt), how the model goes on, and how the text does."""
    samples = []
    for row in range(min(count, len(examples))):
        content = examples[None, row]
        ids = content["input_ids"]
        cut = min(PROMPT_TOKENS, max(len(ids) // 2, 1))
        if "trained" in content:
            cut = max(int(np.argmax(content["trained"])), 1)
        prompt = torch.from_numpy(ids[:cut].astype(np.int64))[None].to(network.device)
        output = network.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=_room(network, cut, settings.max_new_tokens),
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_id(tokenizer),
        )
        samples.append({
            "input": decode(tokenizer, ids[:cut]),
            "output": decode(tokenizer, output[0, cut:]),
            "reference": decode(tokenizer, ids[cut : cut + settings.max_new_tokens]),
        })  # fmt: skip
    return samples


def _room(network: Any, used: int, wanted: int) -> int:
    from lmtrain.model import positions

    limit = positions(network)
    return max(min(wanted, limit - used), 1) if limit else wanted


@torch.no_grad()
def sample_masked(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collate,
    settings: Settings,
) -> list[Sample]:
    """The start of a row with its masks, with the model's best guesses in their places, and as it was."""
    samples = []
    for row in range(min(count, len(examples))):
        batch = {name: tensor.to(network.device) for name, tensor in collate([examples[None, row]]).items()}
        labels = batch.pop("labels")[0, :COMPLETION_TOKENS]
        shown = batch["input_ids"][0, :COMPLETION_TOKENS]
        asked = labels != IGNORED
        best = network(**batch).logits[0, :COMPLETION_TOKENS].argmax(-1)
        masked = torch.where(asked, torch.full_like(shown, tokenizer.mask_token_id), shown)
        samples.append({
            "input": tokenizer.decode(masked.tolist()),
            "output": decode(tokenizer, torch.where(asked, best, shown).tolist()),
            "reference": decode(tokenizer, torch.where(asked, labels, shown).tolist()),
        })  # fmt: skip
    return samples


def sample_pairs(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collate,
    settings: Settings,
) -> list[Sample]:
    """A source, what the model makes of it, and the target."""
    rows = list(range(min(count, len(examples))))
    outputs = dict(transform(network, tokenizer, examples, rows, max(len(rows), 1), settings))
    return [
        {
            "input": decode(tokenizer, examples.columns["input_ids"][row]),
            "output": outputs[row],
            "reference": decode(tokenizer, examples.columns["labels"][row]),
        }
        for row in rows
    ]
