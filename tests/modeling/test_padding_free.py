"""Padding-free batches: loss and gradient equal those of padded batches, and no text attends to another."""

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
from tiny_models import WITHOUT_DROPOUT, as_option
from transformers import AutoConfig, AutoModelForSeq2SeqLM, set_seed

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

PAIRS = ("t5", "mt5", "bart", "marian", "pegasus", "mbart", "m2m_100", "blenderbot")
TEXTS = ("gpt2", "llama", "bert", "roberta", "modernbert", "gpt_neo", "mistral")
SOURCES = [text[: 3 + 11 * i % 37] for i, text in enumerate(sentences(40))]
TARGETS = [text[: 2 + 7 * i % 31] for i, text in enumerate(sentences(40))]


def build_pairs(family: str, attn: str | None = None, scale: float = 3):
    """(network, its batch of forty pairs, their collator)"""
    objective = OBJECTIVES["seq2seq"]
    byte = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES["seq2seq"].model_fields["data"].annotation(train=["x"])
    set_seed(1)
    model = Model(name=family, from_scratch=True, config=WITHOUT_DROPOUT[family][1], attn=attn)
    network, _ = load_network(model, AutoConfig.for_model(family), byte, objective.auto_model)
    enlarge(network, scale)
    pairs = list(zip(SOURCES, TARGETS, strict=True))
    examples = objective.encode(Rows.of("pairs", pairs), byte, data, Limits(None, {}), False)
    collator = objective.collator(byte, data, 1)
    return network.eval(), collator([examples[0, row] for row in range(len(examples))]), collator


def enlarge(network, scale: float) -> None:
    """Make weights as large as trained ones are: with those of an initial model a leak hardly shows."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)


def build_texts(family: str, scale: float = 3):
    """(network, its batch of forty texts of which parts are trained, their collator, their loss)"""
    name, sizes = WITHOUT_DROPOUT[family]
    objective = OBJECTIVES[name]
    byte = train_tokenizer.train_tokenizer("byte", [], objective.special_tokens)
    data = RECIPES[name].model_fields["data"].annotation(train=["x"], packing=False)
    set_seed(1)
    network, _ = load_network(
        Model(name=family, from_scratch=True, config=sizes), AutoConfig.for_model(family), byte, objective.auto_model
    )
    enlarge(network, scale)
    kind, values = ("prompt", list(zip(SOURCES, TARGETS, strict=True))) if name == "clm" else ("text", SOURCES)
    examples = objective.encode(Rows.of(kind, values), byte, data, Limits(64, {}), False)
    collator = objective.collator(byte, data, 1)
    batch = collator([examples[0, row] for row in range(len(examples))])
    return network.eval(), batch, collator, TokenLoss(objective.shift, head_last=True)


def loss_and_gradient(network, loss: TokenLoss, batch) -> tuple[float, torch.Tensor]:
    network.zero_grad()
    value = loss(network, batch, (batch["labels"] != IGNORED).sum())
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("width", [64, 200, 4096])
@pytest.mark.parametrize(("family", "attn"), [*((family, None) for family in PAIRS), ("bart", "eager")])
def test_padding_free_loss_and_gradient_match_padded_pairs(family: str, attn: str | None, width: int):
    network, batch, collator = build_pairs(family, attn, scale=1 if "t5" in family else 3)
    found = padding_free.choose_padding_free(network, TokenLoss(0), collator, (37, 31))
    assert found and found.width == padding_free.WIDTH
    joined = replace(found, width=width)(network, batch)
    assert joined["input_ids"].numel() < 0.8 * batch["input_ids"].numel()
    assert (joined["labels"] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()
    padded = loss_and_gradient(network, TokenLoss(0), batch)
    loss = TokenLoss(0, document_attention=found.attention)
    with fast_dropout():
        quick = loss_and_gradient(network, loss, joined)
    for value, gradient in (quick, loss_and_gradient(network, loss, joined)):
        assert value == pytest.approx(padded[0], rel=1e-5)
        assert (gradient - padded[1]).norm() <= 1e-4 * padded[1].norm()


@pytest.mark.parametrize("family", TEXTS)
def test_padding_free_loss_and_gradient_match_padded_texts(family: str):
    network, batch, collator, loss = build_texts(family)
    lengths = batch["attention_mask"].sum(1)
    found = padding_free.choose_padding_free(network, loss, collator, [int(lengths.max())])
    assert found
    joined = found(network, batch)
    assert joined["input_ids"].shape[1] <= (64 if family == "gpt_neo" else padding_free.WIDTH)
    assert joined["input_ids"].numel() < 0.8 * batch["input_ids"].numel()
    assert int(joined["attention_mask"].sum()) == int(lengths.sum())
    padded = loss_and_gradient(network, loss, batch)
    with fast_dropout():
        quick = loss_and_gradient(network, replace(loss, document_attention=found.attention), joined)
    for value, gradient in (
        quick,
        loss_and_gradient(network, replace(loss, document_attention=found.attention), joined),
    ):
        assert value == pytest.approx(padded[0], rel=1e-5)
        assert (gradient - padded[1]).norm() <= 1e-4 * padded[1].norm()
    together = loss_and_gradient(network, loss, joined)  # without masks, a text attends to the one before
    assert (together[1] - padded[1]).norm() > 1e-3 * padded[1].norm()


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_changing_a_pair_changes_no_other_pair(family: str):
    network, batch, collator = build_pairs(family)
    found = padding_free.choose_padding_free(network, TokenLoss(0), collator, (37, 31))
    joined = found(network, batch)
    assert len(joined["labels"]) == 2
    changed = {name: tensor.clone() for name, tensor in joined.items()}
    for ids, documents in (("input_ids", "documents"), ("decoder_input_ids", "decoder_documents")):
        changed[ids][0, joined[documents][0] == 3] += 1
    with torch.no_grad():
        before, after = (
            TokenLoss(0, document_attention=found.attention).aligned(network, b)[0] for b in (joined, changed)
        )
    moved = (before != after).any(-1)
    assert torch.equal(moved, (joined["decoder_documents"] == 3) & (torch.arange(2) == 0)[:, None])


def test_models_that_cannot_separate_documents_keep_padding(monkeypatch: pytest.MonkeyPatch):
    network, _, collator, loss = build_texts("bloom")
    assert padding_free.choose_padding_free(network, loss, collator, [64]) is None
    network, _, collator, loss = build_texts("xlm")
    assert padding_free.choose_padding_free(network, loss, collator, [64]) is None
    network, _, collator = build_pairs("prophetnet")
    assert padding_free.choose_padding_free(network, TokenLoss(0), collator, (37, 31)) is None
    network, _, collator = build_pairs("bart")
    assert padding_free.choose_padding_free(network, TokenLoss(0, own=True), collator, (37, 31)) is None
    assert padding_free.choose_padding_free(network, TokenLoss(0, whole_logits=True), collator, (37, 31)) is None
    monkeypatch.setattr(
        padding_free, "document_positions", lambda documents: torch.arange(documents.shape[1]).expand_as(documents)
    )
    assert padding_free.choose_padding_free(network, TokenLoss(0), collator, (37, 31)) is None, (
        "positions that do not restart would go unnoticed"
    )


def test_a_batch_of_pairs_of_equal_length_is_left_unchanged():
    network, batch, collator = build_pairs("t5")
    same = {name: tensor[:1].repeat(4, 1) for name, tensor in batch.items()}
    lengths = padding_free.text_lengths(same, pairs=True)[0]
    trimmed = {name: tensor[:, : lengths[int(name == "labels")]] for name, tensor in same.items()}
    assert padding_free.choose_padding_free(network, TokenLoss(0), collator, (37, 31))(network, trimmed) is trimmed


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80), st.integers(1, 300))
def test_every_pair_is_in_exactly_one_row_with_room_for_it(sizes: list, width: int):
    lengths = np.array(sizes)
    rows = balance_rows(lengths, width)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    filled = np.array([lengths[row].sum(0) for row in rows])
    assert filled.max() <= max(width, lengths.max())
    shared, slots = share_rows(lengths, width)
    assert lengths.sum() <= slots <= len(sizes) * lengths.max(0).sum()
    assert slots == (len(sizes) * lengths.max(0).sum() if shared is None else count_slots(lengths, rows))


def test_rows_of_texts_of_half_a_row_are_well_filled():
    lengths = np.random.default_rng(0).integers(150, 330, (5000, 1))
    rows = balance_rows(lengths, 512)
    assert max(int(lengths[row].sum()) for row in rows) <= 512
    assert len(rows) < 1.25 * lengths.sum() / 512


def test_the_reported_padding_is_what_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read, concatenate = [], padding_free.PaddingFree.__call__

    def watched(self: Any, *arguments: Any) -> Any:
        batch = concatenate(self, *arguments)
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
    flags = [
        "seq2seq",
        "--model",
        "marian",
        "--from-scratch",
        "--tokenizer",
        "byte",
        "--val-split",
        0,
        "--model-config",
        as_option(WITHOUT_DROPOUT["marian"][1]),
        "--data",
        "pairs.jsonl",
    ]
    for size in (["-b", 32], ["--batch-tokens", 400]):
        read.clear()
        results = trained(*flags, *size, "-o", f"run{size[0]}", "--epochs", 1)
        slots, tokens = (int(sum(column)) for column in zip(*read, strict=True))
        assert results["train"]["tokens_seen"] == tokens
        assert results["data"]["train"]["padding_fraction"] == pytest.approx(1 - tokens / slots)
        assert results["data"]["train"]["padding_fraction"] < 0.05
    assert max(seen for _, seen in read) < 500, "batches of about 400 tokens"


def test_both_forwards_are_restored_after_an_error():
    network, batch, _ = build_pairs("bart")
    decoder = network.get_decoder()
    decoder.forward = hooked = decoder.forward  # as a device map leaves it
    mask = padding_free.PairMask(network.get_encoder(), network.get_decoder(), None)
    documents = {"documents": batch["attention_mask"], "decoder_documents": (batch["labels"] >= 0).long()}
    _, separated = mask.prepare({**batch, **documents, "decoder_input_ids": batch["labels"]})
    with pytest.raises(KeyError), separated:
        assert vars(decoder)["forward"] is not hooked
        raise KeyError
    assert [module for module in network.modules() if "forward" in vars(module)] == [decoder]
    assert vars(decoder)["forward"] is hooked
    assert isinstance(network, AutoModelForSeq2SeqLM._model_mapping[type(network.config)])
