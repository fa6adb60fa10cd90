"""Texts that share a row: the loss and the gradient of texts that stand alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lmtrain, scratch, sentences, trained
from transformers import AutoConfig, set_seed

from lmtrain.commands.doctor import FAMILIES
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
_BERT = FAMILIES["bert"][1]
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: FAMILIES[family] for family in ("gpt2", "llama", "bert", "roberta", "modernbert")},
    "qwen3": ("clm", {**FAMILIES["llama"][1], "head_dim": 16}),
    "mistral": ("clm", {**FAMILIES["llama"][1], "sliding_window": 8}),
    "electra": ("mlm", {**_BERT, "embedding_size": 32}),
    "opt": ("clm", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "dropout": 0.0,
                    "word_embed_proj_dim": 32}),
    "bloom": ("clm", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}  # fmt: skip


def made(family: str, attn: str | None = None):
    """(network, examples whose texts share rows, collate)"""
    name, sizes = SIZES[family]
    objective = OBJECTIVES[name]
    made_tokenizer = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES[name].model_fields["data"].annotation(train=["x"], max_length=LENGTH)
    set_seed(1)
    model = Model(name=family, from_scratch=True, config=sizes, attn=attn)
    network, _ = load_network(model, AutoConfig.for_model(family), made_tokenizer, objective.auto_model)
    with torch.no_grad():  # weights as large as those of a trained model: what leaks in would else hardly show
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    examples = objective.encode(Rows.of("text", TEXTS), made_tokenizer, data, Limits(None, {}), False)
    return network.eval(), examples.packed(LENGTH), objective.collate(made_tokenizer, data, 1), objective.shift


def loss_and_gradient(network, loss: TokenLoss, collate, rows: list) -> tuple[float, torch.Tensor]:
    """Of all rows, one batch."""
    network.zero_grad()
    batch = collate(rows)
    value = loss(network, batch, (batch["labels"] != -100).sum())
    value.backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return value.item(), torch.cat(gradients)


@pytest.mark.parametrize(
    ("family", "attn"),
    [*((family, None) for family in SIZES if family != "bloom"), ("bert", "eager"), ("llama", "eager")],
)
def test_loss_and_gradient_are_those_of_texts_alone(family: str, attn: str | None):
    network, packed, collate, shift = made(family, attn)
    assert len(packed) <= packed.count / 2
    apart = find_document_mask(network, causal=shift == 1)
    assert apart is not None
    together = loss_and_gradient(
        network, TokenLoss(shift, apart=apart), collate, [packed[0, row] for row in range(len(packed))]
    )
    single = replace(packed, shared=None)
    alone = loss_and_gradient(network, TokenLoss(shift), collate, [single[0, row] for row in range(single.count)])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert (together[1] - alone[1]).norm() <= 1e-4 * alone[1].norm()
    crossing = loss_and_gradient(network, TokenLoss(shift), collate, [packed[0, row] for row in range(len(packed))])
    assert abs(crossing[0] - alone[0]) > 1e-4 * alone[0], "this test would not notice texts that read one another"


@pytest.mark.parametrize("family", [family for family in SIZES if family != "bloom"])
def test_a_changed_token_changes_no_other_text(family: str):
    network, packed, collate, shift = made(family)
    loss = TokenLoss(shift, apart=find_document_mask(network, causal=shift == 1))
    row = int(np.argmax(np.diff(packed.shared.offsets)))
    batch = collate([packed[0, row]])
    documents = batch["documents"][0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    at = int((documents == 2).nonzero()[1])
    changed["input_ids"][0, at] += 1
    with torch.no_grad():
        before, _ = TokenLoss(0, apart=loss.apart).aligned(network, batch)
        after, _ = TokenLoss(0, apart=loss.apart).aligned(network, changed)
    moved = (before - after)[0].abs().amax(-1)
    assert (moved[documents == 2] > 1e-4).any()
    assert moved[documents != 2].max() == 0


def test_positions_start_anew_with_every_text_and_with_the_padding():
    assert document_positions(torch.tensor([[1, 1, 1, 2, 2, 0, 0]])).tolist() == [[0, 1, 2, 0, 1, 0, 1]]


def test_a_model_that_cannot_is_packed_as_blocks_in_the_open(material):
    """BLOOM counts its positions from an attention mask of ones and zeros, and takes no other."""
    network, *_ = made("bloom")
    data = RECIPES["clm"].model_fields["data"].annotation(train=["x"])
    packing = choose_packing(network, data, "text", True)
    assert packing.apart is None
    assert packing.data.blocks
    outcome = lmtrain("clm", "--model", "bloom", "--from-scratch", "--model-config", "hidden_size=32,n_layer=2,n_head=2",
                      "--tokenizer", "bpe:300", "--data", material / "text.jsonl", "-L", 32, "--max-steps", 2, "-o", "run")  # fmt: skip
    assert outcome.code == 0
    assert "bloom cannot keep texts that share a row apart: they are packed as blocks" in outcome.err.replace(
        "\n", " "
    )


@pytest.mark.parametrize(("objective", "model"), [("clm", "gpt2"), ("mlm", "bert")])
def test_training_on_packed_texts_is_training_on_texts_alone(objective: str, model: str, material):
    """One step on all rows: the loss is the same, masks included, because they are a function of the text."""
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
