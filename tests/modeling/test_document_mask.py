"""Packed documents: loss and gradient equal those of one document per row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import lmtrain, scratch, sentences, trained
from tiny_models import WITHOUT_DROPOUT, as_option
from transformers import AutoConfig, set_seed

from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES
from lmtrain.data.rows import Rows
from lmtrain.modeling.document_mask import choose_packing, document_positions, find_document_mask
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.network import load_network
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import train_tokenizer
from lmtrain.preprocessing.dataset import Limits

LENGTH = 48
TEXTS = [text[: 3 + 7 * i % 25] for i, text in enumerate(sentences(24))]
FAMILIES = ("gpt2", "llama", "qwen3", "mistral", "opt", "bert", "roberta", "electra", "modernbert")


def build(family: str, attn: str | None = None):
    """(network, examples whose texts share rows, collator, shift of the labels)"""
    name, sizes = WITHOUT_DROPOUT[family]
    objective = OBJECTIVES[name]
    tokenizer = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES[name].model_fields["data"].annotation(train=["x"], max_length=LENGTH)
    set_seed(1)
    model = Model(name=family, from_scratch=True, config=sizes, attn=attn)
    network, _ = load_network(model, AutoConfig.for_model(family), tokenizer, objective.auto_model)
    with torch.no_grad():  # as large as trained weights: with initial ones a leak hardly shows
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    examples = objective.encode(Rows.of("text", TEXTS), tokenizer, data, Limits(None, {}), False)
    return network.eval(), examples.packed(LENGTH), objective.collator(tokenizer, data, 1), objective.shift


def loss_and_gradient(network, loss: TokenLoss, collator, rows: list) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one batch of all rows."""
    network.zero_grad()
    batch = collator(rows)
    value = loss(network, batch, (batch["labels"] != -100).sum())
    value.backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return value.item(), torch.cat(gradients)


@pytest.mark.parametrize(
    ("family", "attn"),
    [*((family, None) for family in FAMILIES), ("bert", "eager"), ("llama", "eager")],
)
def test_packed_loss_and_gradient_match_unpacked(family: str, attn: str | None):
    network, packed, collator, shift = build(family, attn)
    assert len(packed) <= packed.count / 2
    mask = find_document_mask(network, causal=shift == 1)
    assert mask is not None
    together = loss_and_gradient(
        network, TokenLoss(shift, document_attention=mask), collator, [packed[0, row] for row in range(len(packed))]
    )
    single = replace(packed, shared=None)
    alone = loss_and_gradient(network, TokenLoss(shift), collator, [single[0, row] for row in range(single.count)])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert (together[1] - alone[1]).norm() <= 1e-4 * alone[1].norm()
    crossing = loss_and_gradient(network, TokenLoss(shift), collator, [packed[0, row] for row in range(len(packed))])
    assert abs(crossing[0] - alone[0]) > 1e-4 * alone[0], (
        "this test would not notice documents that attend to each other"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_a_token_changes_no_other_document(family: str):
    network, packed, collator, shift = build(family)
    loss = TokenLoss(0, document_attention=find_document_mask(network, causal=shift == 1))
    row = int(np.argmax(np.diff(packed.shared.offsets)))
    batch = collator([packed[0, row]])
    documents = batch["documents"][0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    at = int((documents == 2).nonzero()[1])
    changed["input_ids"][0, at] += 1
    with torch.no_grad():
        before, _ = loss.aligned(network, batch)
        after, _ = loss.aligned(network, changed)
    moved = (before - after)[0].abs().amax(-1)
    assert (moved[documents == 2] > 1e-4).any()
    assert moved[documents != 2].max() == 0


def test_positions_restart_in_every_document_and_in_the_padding():
    assert document_positions(torch.tensor([[1, 1, 1, 2, 2, 0, 0]])).tolist() == [[0, 1, 2, 0, 1, 0, 1]]


def test_a_model_that_cannot_separate_documents_packs_blocks_with_a_warning(material):
    """BLOOM counts its positions from an attention mask of ones and zeros, and takes no other mask."""
    network, *_ = build("bloom")
    data = RECIPES["clm"].model_fields["data"].annotation(train=["x"])
    packing = choose_packing(network, data, "text", True)
    assert packing.mask is None
    assert packing.data.packs_blocks
    outcome = lmtrain(
        "clm",
        "--model",
        "bloom",
        "--from-scratch",
        "--model-config",
        as_option(WITHOUT_DROPOUT["bloom"][1]),
        "--tokenizer",
        "bpe:300",
        "--data",
        material / "text.jsonl",
        "-L",
        32,
        "--max-steps",
        2,
        "-o",
        "run",
    )
    assert outcome.code == 0
    message = outcome.err.replace("\n", " ")
    assert (
        "bloom cannot keep packed documents from attending to each other, so they are concatenated and cut" in message
    )


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "model"), [("clm", "gpt2"), ("mlm", "bert")])
def test_packed_training_matches_unpacked_training(objective: str, model: str, material):
    """One step on all rows: the loss is equal, with masks too, because masks are a function of the text."""
    run = [
        objective,
        *scratch(model),
        "--data",
        material / "text.jsonl",
        "-L",
        128,
        "--max-steps",
        1,
        "--log-every",
        1,
    ]
    config = run.index("--model-config") + 1
    off = {
        "gpt2": "resid_pdrop=0,embd_pdrop=0,attn_pdrop=0",
        "bert": "hidden_dropout_prob=0,attention_probs_dropout_prob=0",
    }
    run[config] += "," + off[model]
    packed = trained(*run, "-b", 1000, "-o", "packed")
    alone = trained(*run, "-b", 1000, "--no-packing", "-o", "alone")
    assert packed["data"]["train"]["tokens_trained"] == alone["data"]["train"]["tokens_trained"]
    assert packed["train"]["first_loss"] == pytest.approx(alone["train"]["first_loss"], rel=1e-5)
    assert packed["metrics"]["eval_loss"] == pytest.approx(alone["metrics"]["eval_loss"], rel=1e-4)
    assert packed["train"]["tokens_seen"] == alone["train"]["tokens_seen"]
