"""Texts and pairs end to end in rows: the loss and the gradient of padded ones, none of which sees another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sentences, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSeq2SeqLM, set_seed

from lmtrain.commands.doctor import FAMILIES
from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES
from lmtrain.data.rows import Rows
from lmtrain.modeling import padding_free
from lmtrain.modeling.cpu_kernels import fast_dropout
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.network import load_network
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import train_tokenizer
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.packing import balance_rows, count_slots, share_rows

BART = FAMILIES["bart"][1]
SIZES: dict[str, dict[str, Any]] = {
    "t5": FAMILIES["t5"][1], "mt5": FAMILIES["t5"][1], "bart": BART, "marian": BART, "pegasus": BART, "mbart": BART,
    "m2m_100": BART, "blenderbot": BART,
}  # fmt: skip
SOURCES = [text[: 3 + 11 * i % 37] for i, text in enumerate(sentences(40))]
TARGETS = [text[: 2 + 7 * i % 31] for i, text in enumerate(sentences(40))]


def made(family: str, attn: str | None = None, large: float = 3):
    """(network, its batch of forty pairs, their collate)"""
    objective = OBJECTIVES["seq2seq"]
    byte = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES["seq2seq"].model_fields["data"].annotation(train=["x"])
    set_seed(1)
    model = Model(name=family, from_scratch=True, config=SIZES.get(family, FAMILIES["prophetnet"][1]), attn=attn)
    network, _ = load_network(model, AutoConfig.for_model(family), byte, objective.auto_model)
    with torch.no_grad():  # weights as large as those of a trained model: what leaks in would else hardly show
        for parameter in network.parameters():
            parameter.mul_(large if parameter.dim() > 1 else 1)
    pairs = list(zip(SOURCES, TARGETS, strict=True))
    examples = objective.encode(Rows.of("pairs", pairs), byte, data, Limits(None, {}), False)
    collate = objective.collate(byte, data, 1)
    return network.eval(), collate([examples[0, row] for row in range(len(examples))]), collate


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
         "max_position_embeddings": 128}  # fmt: skip
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: FAMILIES[name] for name in ("gpt2", "llama", "bert", "roberta", "modernbert")},
    "gpt_neo": ("clm", {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                        "max_position_embeddings": 64, "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}),
    "mistral": ("clm", SMALL | {"sliding_window": 8}),
}  # fmt: skip
"""Family -> (objective, a configuration without dropout); gpt_neo holds causal masks no larger than its positions."""


def made_of_texts(family: str, large: float = 3):
    """(network, its batch of forty texts of which parts are trained, their collate, their loss)"""
    name, sizes = TEXTS[family]
    objective = OBJECTIVES[name]
    byte = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES[name].model_fields["data"].annotation(train=["x"], packing=False)
    set_seed(1)
    network, _ = load_network(
        Model(name=family, from_scratch=True, config=sizes), AutoConfig.for_model(family), byte, objective.auto_model
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(large if parameter.dim() > 1 else 1)
    kind, values = ("prompt", list(zip(SOURCES, TARGETS, strict=True))) if name == "clm" else ("text", SOURCES)
    examples = objective.encode(Rows.of(kind, values), byte, data, Limits(64, {}), False)
    collate = objective.collate(byte, data, 1)
    batch = collate([examples[0, row] for row in range(len(examples))])
    return network.eval(), batch, collate, TokenLoss(objective.shift, head_last=True)


def loss_and_gradient(network, loss: TokenLoss, batch) -> tuple[float, torch.Tensor]:
    network.zero_grad()
    value = loss(network, batch, (batch["labels"] != IGNORED).sum())
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("width", [64, 200, 4096])
@pytest.mark.parametrize(("family", "attn"), [*((family, None) for family in SIZES), ("bart", "eager")])
def test_loss_and_gradient_are_those_of_padded_pairs(family: str, attn: str | None, width: int):
    network, batch, collate = made(family, attn, large=1 if "t5" in family else 3)
    found = padding_free.choose_padding_free(network, TokenLoss(0), collate, (37, 31))
    assert found and found.width == padding_free.WIDTH
    joined = replace(found, width=width)(network, batch)
    assert joined["input_ids"].numel() < 0.8 * batch["input_ids"].numel()
    assert (joined["labels"] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()
    padded = loss_and_gradient(network, TokenLoss(0), batch)
    loss = TokenLoss(0, apart=found.apart)
    with fast_dropout():
        quick = loss_and_gradient(network, loss, joined)
    for value, gradient in (quick, loss_and_gradient(network, loss, joined)):
        assert value == pytest.approx(padded[0], rel=1e-5)
        assert (gradient - padded[1]).norm() <= 1e-4 * padded[1].norm()


@pytest.mark.parametrize("family", TEXTS)
def test_loss_and_gradient_are_those_of_padded_texts(family: str):
    network, batch, collate, loss = made_of_texts(family)
    lengths = batch["attention_mask"].sum(1)
    found = padding_free.choose_padding_free(network, loss, collate, [int(lengths.max())])
    assert found
    joined = found(network, batch)
    assert joined["input_ids"].shape[1] <= (64 if family == "gpt_neo" else padding_free.WIDTH)
    assert joined["input_ids"].numel() < 0.8 * batch["input_ids"].numel()
    assert int(joined["attention_mask"].sum()) == int(lengths.sum())
    padded = loss_and_gradient(network, loss, batch)
    with fast_dropout():
        quick = loss_and_gradient(network, replace(loss, apart=found.apart), joined)
    for value, gradient in (quick, loss_and_gradient(network, replace(loss, apart=found.apart), joined)):
        assert value == pytest.approx(padded[0], rel=1e-5)
        assert (gradient - padded[1]).norm() <= 1e-4 * padded[1].norm()
    together = loss_and_gradient(network, loss, joined)  # not told, a text reads the one before
    assert (together[1] - padded[1]).norm() > 1e-3 * padded[1].norm()


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_a_changed_pair_changes_no_other(family: str):
    network, batch, collate = made(family)
    found = padding_free.choose_padding_free(network, TokenLoss(0), collate, (37, 31))
    joined = found(network, batch)
    assert len(joined["labels"]) == 2
    changed = {name: tensor.clone() for name, tensor in joined.items()}
    for ids, documents in (("input_ids", "documents"), ("decoder_input_ids", "decoder_documents")):
        changed[ids][0, joined[documents][0] == 3] += 1
    with torch.no_grad():
        before, after = (TokenLoss(0, apart=found.apart).aligned(network, b)[0] for b in (joined, changed))
    moved = (before != after).any(-1)
    assert torch.equal(moved, (joined["decoder_documents"] == 3) & (torch.arange(2) == 0)[:, None])


def test_models_that_cannot_keep_texts_apart_pad_them(monkeypatch: pytest.MonkeyPatch):
    bloom = ("clm", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0})
    monkeypatch.setitem(TEXTS, "bloom", bloom)  # makes its positions from a mask of ones and zeros
    network, _, collate, loss = made_of_texts("bloom")
    assert padding_free.choose_padding_free(network, loss, collate, [64]) is None
    monkeypatch.setitem(
        TEXTS, "xlm", ("mlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 2})
    )  # asserts the mask's shape
    network, _, collate, loss = made_of_texts("xlm")
    assert padding_free.choose_padding_free(network, loss, collate, [64]) is None
    network, _, collate = made("prophetnet")
    assert padding_free.choose_padding_free(network, TokenLoss(0), collate, (37, 31)) is None
    network, _, collate = made("bart")
    assert padding_free.choose_padding_free(network, TokenLoss(0, own=True), collate, (37, 31)) is None
    assert padding_free.choose_padding_free(network, TokenLoss(0, whole_logits=True), collate, (37, 31)) is None
    monkeypatch.setattr(
        padding_free, "positions", lambda documents: torch.arange(documents.shape[1]).expand_as(documents)
    )
    assert padding_free.choose_padding_free(network, TokenLoss(0), collate, (37, 31)) is None, (
        "positions that run on would go unnoticed"
    )


def test_a_batch_of_pairs_that_are_all_of_one_length_stays_as_it_is():
    network, batch, collate = made("t5")
    same = {name: tensor[:1].repeat(4, 1) for name, tensor in batch.items()}
    lengths = padding_free.text_lengths(same, pairs=True)[0]
    trimmed = {name: tensor[:, : lengths[int(name == "labels")]] for name, tensor in same.items()}
    assert padding_free.choose_padding_free(network, TokenLoss(0), collate, (37, 31))(network, trimmed) is trimmed


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80), st.integers(1, 300))
def test_every_pair_has_a_place_in_a_row_that_has_room(sizes: list, width: int):
    lengths = np.array(sizes)
    rows = balance_rows(lengths, width)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    filled = np.array([lengths[row].sum(0) for row in rows])
    assert filled.max() <= max(width, lengths.max())
    shared, places = share_rows(lengths, width)
    assert lengths.sum() <= places <= len(sizes) * lengths.max(0).sum()
    assert places == (len(sizes) * lengths.max(0).sum() if shared is None else count_slots(lengths, rows))


def test_many_texts_of_half_a_row_are_laid_at_once():
    lengths = np.random.default_rng(0).integers(150, 330, (5000, 1))
    rows = balance_rows(lengths, 512)
    assert max(int(lengths[row].sum()) for row in rows) <= 512
    assert len(rows) < 1.25 * lengths.sum() / 512


def test_training_reads_the_padding_that_its_account_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read, lay = [], padding_free.PaddingFree.__call__

    def watched(self: Any, *arguments: Any) -> Any:
        batch = lay(self, *arguments)
        read.append(
            (
                batch["input_ids"].numel() + batch["labels"].numel(),
                batch["attention_mask"].sum() + (batch["labels"] >= 0).sum(),
            )
        )
        return batch

    monkeypatch.setattr(padding_free.PaddingFree, "__call__", watched)
    lines = [{"source": s, "target": t} for s, t in zip(sentences(200), reversed(sentences(200)), strict=True)]
    for number, line in enumerate(lines):
        line["source"] = line["source"][: 2 + 5 * number % 29]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["seq2seq", "--model", "marian", "--from-scratch", "--tokenizer", "byte", "--val-split", 0,
             "--model-config", ",".join(f"{name}={value}" for name, value in BART.items()), "--data", "pairs.jsonl"]  # fmt: skip
    for size in (["-b", 32], ["--batch-tokens", 400]):
        read.clear()
        results = trained(*flags, *size, "-o", f"run{size[0]}", "--epochs", 1)
        places, tokens = (int(sum(column)) for column in zip(*read, strict=True))
        assert results["train"]["tokens_seen"] == tokens
        assert results["data"]["train"]["padding_fraction"] == pytest.approx(1 - tokens / places)
        assert results["data"]["train"]["padding_fraction"] < 0.05
    assert max(seen for _, seen in read) < 500, "batches of about 400 tokens"


def test_both_sides_do_again_what_they_did_after_a_failure():
    network, batch, _ = made("bart")
    decoder = network.get_decoder()
    decoder.forward = hooked = decoder.forward  # as a device map has it
    apart = padding_free.PairMask(network.get_encoder(), network.get_decoder(), None)
    with pytest.raises(KeyError):
        apart(network, {"documents": batch["attention_mask"], "decoder_documents": batch["labels"], "input_ids": batch["input_ids"]})  # fmt: skip
    assert [module for module in network.modules() if "forward" in vars(module)] == [decoder]
    assert vars(decoder)["forward"] is hooked
    assert isinstance(network, AutoModelForSeq2SeqLM._model_mapping[type(network.config)])
