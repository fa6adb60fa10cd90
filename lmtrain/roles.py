"""What a batch asks of the model: every token with the role that it has in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.collate import IGNORED, Batch, Row, padded
from lmtrain.loss import decoder_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Token:
    id: int
    role: str
    label: int | None = None
    """The id that is to be predicted here; None where nothing is."""


Lines = dict[str, list[Token]]
"""What the model is given of one row and what it is to predict: `tokens`, or `source`, `decoder_input` and `labels`."""

Seen = tuple[list[int], Lines]
"""Of a row the lengths of the texts in it, and its lines."""


@dataclass(frozen=True)
class Look:
    """How a role is shown: with and without colour, and in words."""

    name: str
    meaning: str
    sample: str
    """Without colour, for the legend."""
    colours: tuple[str, str]
    """Shades that take turns from token to token."""
    around: tuple[str, str] = ("", "")
    """Marks around neighbours of this role."""
    form: str = "{token}"
    """A token of this role by itself; {label} is what is to be predicted in its place."""


GREEN, BLUE, GREY = ("#2f9e44", "#66a80f"), ("#1c7ed6", "#3b9fe8"), ("#7a818c", "#8d949e")
RED, ORANGE, CYAN = ("#e03131", "#e03131"), ("#e8890c", "#e8890c"), ("#0c9aa8", "#0c9aa8")

PAD = Look("pad", "fills the row up; neither read nor predicted", "‹pad ×3›", GREY, ("‹pad ", "›"), "×{count}")


@dataclass(frozen=True)
class View:
    """How the rows of an objective are looked at."""

    explanation: str
    """Two plain sentences on what is learnt."""
    lines: Callable[[list[Row], Batch, PreTrainedTokenizerBase, PreTrainedModel], list[Lines]]
    looks: dict[str, Look]
    measures: dict[str, str] = field(default_factory=lambda: {"tokens": "length"})
    """The lines that a row's length is made of, in the order of Examples.lengths_by_column, and what each is called."""
    titles: dict[str, str] = field(default_factory=dict)
    """Of each line, where a row has several."""


def causal(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """`trained` are predicted from what stands before them, `prompt` and `ignored` (the first of a text) are not."""
    ids, labels, real = _arrays(batch)
    asked = [row.get("trained", np.ones(len(row["input_ids"]), bool)) for row in rows]
    prompt = padded([~some for some in asked], 0, ids.shape[1]).numpy() == 1
    role = np.select([labels != IGNORED, prompt], ["trained", "prompt"], "ignored")
    return [{"tokens": line} for line in _told(ids, role, labels, real)]


def masked(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """`masked`, `replaced` and `kept` are predicted, from all that is shown; `ignored` are not."""
    ids, labels, real = _arrays(batch)
    fates = [labels == IGNORED, ids == labels, ids == tokenizer.mask_token_id]
    role = np.select(fates, ["ignored", "kept", "masked"], "replaced")
    return [{"tokens": line} for line in _told(ids, role, labels, real)]


def pairs(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """`trained` are the labels; source and decoder input are read."""
    ids, labels, real = _arrays(batch)
    given = decoder_inputs(network, batch["labels"]).numpy()
    target = labels != IGNORED
    # The last label stands in the decoder's input as well, where there is padding for it to be moved into.
    reached = np.concatenate([np.ones_like(target[:, :1]), target[:, :-1]], axis=1)
    lines = (
        _told(ids, np.full(ids.shape, "ignored"), np.full_like(ids, IGNORED), real),
        _told(given, np.full(given.shape, "ignored"), np.full_like(given, IGNORED), reached),
        _told(labels, np.full(labels.shape, "trained"), labels, target),
    )
    return [dict(zip(("source", "decoder_input", "labels"), row, strict=True)) for row in zip(*lines, strict=True)]


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels [rows, length], whether an id is none of the padding)."""
    return batch["input_ids"].numpy(), batch["labels"].numpy(), batch["attention_mask"].numpy() == 1


def _told(ids: np.ndarray, role: np.ndarray, labels: np.ndarray, real: np.ndarray) -> list[list[Token]]:
    """The tokens of every row; all [rows, length]."""
    role = np.where(real, role, "pad")
    return [
        [Token(i, r, None if label == IGNORED else label) for i, r, label in zip(*row, strict=True)]
        for row in zip(ids.tolist(), role.tolist(), labels.tolist(), strict=True)
    ]


CAUSAL = View(
    "The model learns to predict each token from the tokens before it, and sees nothing of what comes after. "
    "The end mark is predicted like any other token, so it learns to stop; what it is asked (a prompt, a user's turn) "
    "is only read.",
    causal,
    {
        "trained": Look("trained", "predicted from what stands before it", "cat", GREEN),
        "prompt": Look("prompt", "read, not predicted", "‹cat›", BLUE, ("‹", "›")),
        "ignored": Look(
            "ignored", "begins a text, or a piece of one; nothing is before it", "«cat»", GREY, ("«", "»")
        ),
        "pad": PAD,
    },
)

MASKED = View(
    "A few tokens are hidden, exchanged or left as they are, and the model learns to tell from both sides what stood "
    "there. All others are only read, and every epoch draws anew which ones are asked for.",
    masked,
    {
        "masked": Look("masked", "hidden; cat is to be predicted", "[MASK=cat]", RED, form="[MASK={label}]"),
        "replaced": Look("replaced", "dog is shown, cat is to be predicted", "{dog=cat}", ORANGE,
                         form="{{{token}={label}}}"),
        "kept": Look("kept", "shown as it is, and to be predicted", "(cat)", CYAN, form="({token})"),
        "ignored": Look("ignored", "read, not predicted", "cat", GREY),
        "pad": PAD,
    },
)  # fmt: skip

PAIRS = View(
    "The model reads the whole source and learns to write the target, each token from the source and the target before "
    "it. So the decoder is given the labels one place later, behind a start mark; the end mark is predicted too.",
    pairs,
    {
        "ignored": Look("ignored", "read, not predicted", "source, decoder", BLUE),
        "trained": Look("trained", "predicted from the source and the labels before it", "labels", GREEN),
        "pad": PAD,
    },
    {"source": "length of the source", "labels": "length of the target"},
    {"source": "source", "decoder_input": "decoder", "labels": "labels"},
)


def fractions(batches: list[list[Seen]], view: View, places: int) -> tuple[float, float]:
    """(the share of padding in what the model reads, the share of the other tokens that is predicted).

    `places` for tokens, padding included, is what it reads.
    """
    lines = [lines[name] for batch in batches for _, lines in batch for name in view.measures]
    tokens = sum(token.role != "pad" for line in lines for token in line)
    trained = sum(token.label is not None for line in lines for token in line)
    return 1 - tokens / max(places, 1), trained / max(tokens, 1)
