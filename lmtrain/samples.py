"""Rows in words: what a model makes of them, to look at."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.collate import IGNORED, Collate
from lmtrain.dataset import Examples
from lmtrain.generate import COMPLETION_TOKENS, Settings, decode, outputs, transform

PROMPT_TOKENS = 24

Sample = dict[str, str]


@torch.no_grad()
def causal(
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
        if "trained" in content and not content["trained"][0]:
            cut = max(int(np.argmax(content["trained"])), 1)
        ((output,),) = outputs(network, tokenizer, [ids[:cut]], settings)
        samples.append({
            "input": decode(tokenizer, ids[:cut]),
            "output": output.text,
            "reference": decode(tokenizer, ids[cut : cut + settings.max_new_tokens]),
        })  # fmt: skip
    return samples


@torch.no_grad()
def masked(
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
        texts = tell_masked(tokenizer, *(x.cpu().numpy() for x in (
            shown, torch.where(asked, best, shown), torch.where(asked, labels, shown), asked)))  # fmt: skip
        samples.append({"input": texts["source"], "output": texts["prediction"], "reference": texts["references"][0]})
    return samples


def pairs(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int,
    collate: Collate,
    settings: Settings,
) -> list[Sample]:
    """A source, what the model makes of it, and the target."""
    rows = list(range(min(count, len(examples))))
    written = dict(transform(network, tokenizer, examples, rows, settings))
    return [
        {
            # Of a text made into a pair, the marks of what is missing are to be seen.
            "input": examples.texts[row][0]
            if examples.kind == "text" and examples.texts
            else decode(tokenizer, examples.columns["input_ids"][row]),
            "output": written[row].text,
            "reference": decode(tokenizer, examples.columns["labels"][row]),
        }
        for row in rows
    ]


Told = dict[str, Any]
"""source, prediction and references of a row that was scored and not generated from."""


def tell_causal(
    tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, guessed: np.ndarray, truth: np.ndarray, asked: np.ndarray
) -> Told:
    """The row, the best guess at each of its tokens from the true text before it, and the tokens that were scored."""
    return {
        "source": decode(tokenizer, shown),
        "prediction": decode(tokenizer, guessed[asked]),
        "references": [decode(tokenizer, truth[asked])],
    }


def tell_masked(
    tokenizer: PreTrainedTokenizerBase, shown: np.ndarray, guessed: np.ndarray, truth: np.ndarray, asked: np.ndarray
) -> Told:
    """The row with its masks, with the best guesses in their places, and as it was."""
    masked = np.where(asked, tokenizer.mask_token_id, shown)
    return {
        "source": tokenizer.decode(masked.tolist()),
        "prediction": decode(tokenizer, guessed),
        "references": [decode(tokenizer, truth)],
    }
