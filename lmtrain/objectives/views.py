"""The three views of `preview`: the role of each token in a batch of an objective, and how a role is displayed."""

from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.modeling.classifier_head import head_of, labels_of
from lmtrain.modeling.label_loss import from_bits
from lmtrain.modeling.loss import decoder_inputs
from lmtrain.objectives.token_roles import (
    BLUE,
    CYAN,
    GREEN,
    GREY,
    ORANGE,
    PAD,
    RED,
    Lines,
    Look,
    View,
    arrays_of,
    tokens_of,
)
from lmtrain.preprocessing.batch import IGNORED, Batch, Row, padded


def causal_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """Roles: `trained` (predicted from the tokens before), `prompt`, and `ignored` (the first token of a text)."""
    ids, labels, real = arrays_of(batch)
    trained = [row.get("trained", np.ones(len(row["input_ids"]), bool)) for row in rows]
    prompt = padded([~some for some in trained], 0, ids.shape[1]).numpy() == 1
    role = np.select([labels != IGNORED, prompt], ["trained", "prompt"], "ignored")
    return [{"tokens": line} for line in tokens_of(ids, role, labels, real)]


CAUSAL_VIEW = View(
    "The model learns to predict each token, the end token too, from the tokens before it, and never sees the tokens after "
    "it. Prompts and the user's turns are only read.",
    causal_roles,
    {
        "trained": Look("trained", "predicted from the tokens before it", "cat", GREEN),
        "prompt": Look("prompt", "read, not predicted", "‹cat›", BLUE, ("‹", "›")),
        "ignored": Look(
            "ignored", "first token of a text or of a part of it: no token is before it", "«cat»", GREY, ("«", "»")
        ),
        "pad": PAD,
    },
)


def masked_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """Roles: `masked`, `replaced` and `kept` (all three are predicted), and `ignored`."""
    ids, labels, real = arrays_of(batch)
    fates = [labels == IGNORED, ids == labels, ids == tokenizer.mask_token_id]
    role = np.select(fates, ["ignored", "kept", "masked"], "replaced")
    return [{"tokens": line} for line in tokens_of(ids, role, labels, real)]


MASKED_VIEW = View(
    "Some tokens are masked, replaced by another token or kept, and the model learns to predict the original tokens there "
    "from the tokens on both sides. All other tokens are only read, and every epoch selects other ones.",
    masked_roles,
    {
        "masked": Look("masked", "masked; the model predicts cat", "[MASK=cat]", RED, form="[MASK={label}]"),
        "replaced": Look(
            "replaced", "replaced by dog; the model predicts cat", "{dog=cat}", ORANGE, form="{{{token}={label}}}"
        ),
        "kept": Look("kept", "kept as it is, and predicted", "(cat)", CYAN, form="({token})"),
        "ignored": Look("ignored", "read, not predicted", "cat", GREY),
        "pad": PAD,
    },
)


def label_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """Roles: `labelled` (the first token of a text or of a word, which gets the label) and `ignored`."""
    ids, labels, real = arrays_of(batch)
    classes = [type(network).__name__]
    kind, names = head_of(network.config, classes), labels_of(network.config, classes)
    shown: list[dict[int, str]] = []
    for row in labels:
        if kind == "several":
            own = {0: ", ".join(names[number] for number in np.flatnonzero(row == 1)) or "none"}
        elif kind == "number":
            own = {0: f"{from_bits(row)[0]:.6g}"}
        else:
            own = {at: names[row[at]] for at in np.flatnonzero(row != IGNORED).tolist()}
        shown.append(own)
    return _with_names(ids, real, shown)


def _with_names(ids: np.ndarray, real: np.ndarray, names: list[dict[int, str]]) -> list[Lines]:
    """The tokens of each row, of which some have a label: position -> its name."""
    role = np.full(ids.shape, "ignored", dtype="<U8")
    for row, own in enumerate(names):
        role[row, [*own]] = "labelled"
    lines = tokens_of(ids, role, np.full(ids.shape, IGNORED), real)
    return [
        {"tokens": [replace(token, name=own.get(at)) for at, token in enumerate(line)]}
        for line, own in zip(lines, names, strict=True)
    ]


def answer_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """Roles: `labelled` (the first and the last token of the answer) and `ignored`."""
    ids, labels, real = arrays_of(batch)
    names = [{last: "end", first: "start" if first != last else "start, end"} for first, last in labels.tolist()]
    return _with_names(ids, real, names)


LABEL_VIEW = View(
    "The model reads the whole text and learns to predict its label from the state of its first token, or the tag of each word "
    "from the word's first token. No token is predicted.",
    label_roles,
    {
        "labelled": Look(
            "labelled", "the model gives the label positive here", "[cat=positive]", GREEN, form="[{token}={label}]"
        ),
        "ignored": Look("ignored", "read; no label here", "cat", GREY),
        "pad": PAD,
    },
)


ANSWER_VIEW = View(
    "The model reads a question and a window of its context, and learns to choose the first and the last token of the answer; "
    "the first token of the row where the window does not hold it. No token is predicted.",
    answer_roles,
    {
        "labelled": Look("labelled", "the answer begins or ends here", "[cat=start]", GREEN, form="[{token}={label}]"),
        "ignored": Look("ignored", "read; not an end of the answer", "cat", GREY),
        "pad": PAD,
    },
)


def pair_roles(rows: list[Row], batch: Batch, tokenizer: PreTrainedTokenizerBase, network: Any) -> list[Lines]:
    """Roles: `trained` (labels) and `ignored` (source and decoder input)."""
    ids, labels, real = arrays_of(batch)
    given = decoder_inputs(network, batch["labels"]).numpy()
    target = labels != IGNORED
    # The decoder's input also has the last label if padding follows it.
    reached = np.concatenate([np.ones_like(target[:, :1]), target[:, :-1]], axis=1)
    lines = (
        tokens_of(ids, np.full(ids.shape, "ignored"), np.full_like(ids, IGNORED), real),
        tokens_of(given, np.full(given.shape, "ignored"), np.full_like(given, IGNORED), reached),
        tokens_of(labels, np.full(labels.shape, "trained"), labels, target),
    )
    return [dict(zip(("source", "decoder_input", "labels"), row, strict=True)) for row in zip(*lines, strict=True)]


PAIR_VIEW = View(
    "The model reads the whole source and learns to write the target: it predicts each token, the end token too, from the "
    "source and from the target tokens before it. The decoder reads the labels shifted by one position, after a start token.",
    pair_roles,
    {
        "ignored": Look("ignored", "read, not predicted", "source, decoder", BLUE),
        "trained": Look("trained", "predicted from the source and the labels before it", "labels", GREEN),
        "pad": PAD,
    },
    {"source": "length of the source", "labels": "length of the target"},
    {"source": "source", "decoder_input": "decoder", "labels": "labels"},
)
