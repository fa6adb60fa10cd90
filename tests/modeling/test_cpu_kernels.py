"""Faster CPU kernels compute the same functions, fall back for what they do not know, and restore what they replaced."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import lmtrain, outcome_of, scratch, trained
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
)
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmtrain.config.model import Model
from lmtrain.modeling import cpu_attention
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.cpu_documents import find_documents
from lmtrain.modeling.cpu_kernels import fallbacks, fast_dropout, fuse_gelu
from lmtrain.modeling.network import load_network

TORCH_DROPOUT = F.dropout
LONG = 150
"""More queries than one block."""
DOCUMENTS = torch.stack([torch.arange(LONG) // 20, (torch.arange(LONG) + 7) // 16])
SAME = (DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :])[:, None]
CLOSE = torch.ones(2, 1, LONG, LONG, dtype=torch.bool).tril().triu(-9)
MASKS = {
    "causal": None,
    "none": None,
    "bool": torch.rand(2, 1, LONG, LONG, generator=torch.Generator().manual_seed(1)) + torch.eye(LONG) > 0.3,
    "padding": (torch.arange(LONG) < torch.tensor([[90], [LONG]]))[:, None, None],
    "documents": SAME,
    "documents, causal": SAME.tril(),
    "documents, one row for all": SAME[:1],
    "documents, an unseen key": SAME & (torch.arange(LONG) != 100),
    "documents, a window": SAME & CLOSE,
    "window": CLOSE,
    "previous token": CLOSE & torch.ones(LONG, LONG, dtype=torch.bool).triu(-1),
    "float": torch.randn(2, 1, LONG, LONG, generator=torch.Generator().manual_seed(2)),
}


@pytest.fixture(autouse=True)
def no_earlier_fallbacks() -> None:
    fallbacks()


def attention(*given: Any, **options: Any) -> torch.Tensor:
    return cpu_attention.attention(sdpa_attention_forward, pytest.fail, *given, **options)[0]


def module(is_causal: bool = True, **attributes: Any) -> torch.nn.Module:
    made = torch.nn.Module()
    for name, value in {"is_causal": is_causal, **attributes}.items():
        setattr(made, name, value)
    return made


# --- dropout ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_its_scale_and_its_gradient(rate: float):
    torch.manual_seed(0)
    states = torch.randn(1000, 1001).abs().add(1).requires_grad_()
    with fast_dropout():
        dropped = F.dropout(states, rate, training=True)
        assert F.dropout(states, rate, training=False) is states
    kept = dropped != 0
    error = 4 * (rate * (1 - rate) / states.numel()) ** 0.5 + 1e-5
    assert (~kept).float().mean().item() == pytest.approx(rate, abs=error)
    assert torch.allclose(dropped[kept], states[kept] / (1 - rate), rtol=1e-3)
    dropped.sum().backward()
    assert torch.equal(states.grad != 0, kept)
    # Neither rows nor columns are alike.
    assert (~kept).float().mean(0).std() < 0.05 and (~kept).float().mean(1).std() < 0.05


def test_dropout_is_a_function_of_the_seed_of_torch():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with fast_dropout():
            drawn.append((F.dropout(torch.ones(100)), F.dropout(torch.ones(100))))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0]) and not torch.equal(*drawn[0])


def test_dropout_of_everything_and_in_place_is_computed_by_torch():
    with fast_dropout():
        for rate in (1.0, 1 - 1e-7):  # the second one rounds to 1
            torch.manual_seed(1)
            assert not F.dropout(torch.ones(1000), rate).any()
        assert fallbacks() == []
        states = torch.ones(1000)
        assert F.dropout(states, 0.5, inplace=True) is states and not states.all()
        F.dropout(states, 0.5, inplace=True)
        with pytest.raises(ValueError, match="probability"):
            F.dropout(states, -0.5)
    assert fallbacks() == ["dropout with the argument inplace is computed by torch's own kernel"]
    assert fallbacks() == []


# --- attention -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_and_its_gradient_match_transformers(mask: str, heads: int, dropout: float):
    torch.manual_seed(0)
    states = [torch.randn(2, n, LONG, 8, requires_grad=True) for n in (4, heads, heads)]
    layer = module(mask == "causal", num_key_value_groups=4 // heads)
    outer = torch.randn(2, LONG, 4, 8)
    expected, _ = sdpa_attention_forward(layer, *states, MASKS[mask])
    found = attention(layer, *states, MASKS[mask], dropout=dropout, sliding_window=4, position_ids=torch.arange(LONG))
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = [torch.autograd.grad(out, states, outer) for out in (expected, found)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_documents_are_found_where_each_attends_to_keys_of_its_own():
    found = {name: find_documents(mask) for name, mask in MASKS.items() if mask is not None}
    expected = {"documents", "documents, causal", "documents, one row for all", "documents, an unseen key"}
    assert {name for name, documents in found.items() if documents} == expected
    assert found["documents"].mask.shape == (8 + 10, 1, 20, 20)


@pytest.mark.parametrize("biased", [True, False])
def test_gradient_of_attention_with_dropout_passes_gradcheck(biased: bool):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 70, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 70, 70, dtype=torch.float64, requires_grad=True)

    def seeded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return attention(module(), query, key, value, None, dropout=0.3, position_bias=bias if biased else None)

    assert torch.autograd.gradcheck(seeded, (query, key, value, bias), fast_mode=True)


def test_attention_drops_its_rate_of_weights():
    """With all values 1, the output is the sum of the kept weights, scaled."""
    torch.manual_seed(0)
    query, key = torch.randn(8, 4, LONG, 8), torch.randn(8, 4, LONG, 8)
    out = attention(module(), query, key, torch.ones(8, 4, LONG, 8), None, dropout=0.25)
    assert out.mean().item() == pytest.approx(1, abs=0.01) and out.std() > 0.05
    first = out[:, 0]  # the first query sees one key
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])


UNKNOWN = {
    "softcap": ({"softcap": 30.0}, "the argument softcap"),
    "an argument of a later release": ({"window": 4}, "the argument window"),
    "dropout of everything": ({"dropout": 1.0}, "a dropout of 1"),
    "a mask of three dimensions": ({"attention_mask": SAME[:, 0]}, "a mask that does not have four dimensions"),
    "queries of one row for all": ({"query": torch.zeros(1, 4, LONG, 8)}, "queries and keys of different shapes"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_attention_leaves_what_it_does_not_know_to_transformers(case: str):
    given, reason = UNKNOWN[case]
    calls, notes = [], []

    def original(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        calls.append({"query": query, "attention_mask": attention_mask, **options})
        return query, None

    states = dict.fromkeys(("query", "key", "value"), torch.zeros(2, 4, LONG, 8))
    call = {**states, "attention_mask": None, "dropout": 0.1, **given}
    cpu_attention.attention(original, notes.append, module(), **call)
    assert notes == [f"attention with {reason} is computed by transformers' own function"]
    assert calls == [{name: value for name, value in call.items() if name not in ("key", "value")}]


def test_packed_documents_without_dropout_fall_back_as_well():
    states = [torch.zeros(2, 4, LONG, 8) for _ in range(3)]
    with fast_dropout(), pytest.raises(ValueError, match="softcap"):
        ALL_ATTENTION_FUNCTIONS["sdpa"](module(), *states, SAME, softcap=30.0)
    assert fallbacks() == ["attention with the argument softcap is computed by transformers' own function"]


# --- what is replaced is restored ------------------------------------------------------------------------------------
def test_functions_are_restored_after_the_block_after_an_error_and_when_nested():
    with fast_dropout():
        outer = F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"]
        assert outer != (TORCH_DROPOUT, sdpa_attention_forward)
        with pytest.raises(RuntimeError), fast_dropout():
            assert outer != (F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"])
            raise RuntimeError
        assert outer == (F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"])
    assert (F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"]) == (TORCH_DROPOUT, sdpa_attention_forward)


def test_what_somebody_else_put_there_is_called_and_restored(monkeypatch: pytest.MonkeyPatch):
    theirs = partial(TORCH_DROPOUT), partial(sdpa_attention_forward)
    monkeypatch.setattr(F, "dropout", theirs[0])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", theirs[1])
    with fast_dropout():
        assert F.dropout.args[0] is theirs[0]
    assert F.dropout is theirs[0] and ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs[1]


# --- GELU ------------------------------------------------------------------------------------------------------------
def test_fused_gelu_matches_gelu_new():
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = network(ids).logits
        fuse_gelu(network)
        assert not has_gelu_new(network)
        assert torch.allclose(network(ids).logits, before, atol=1e-6)


def has_gelu_new(network: torch.nn.Module) -> bool:
    return any(isinstance(child, NewGELUActivation) for child in network.modules())


@pytest.fixture
def bert_with_gelu_new(bert: Path) -> str:
    shutil.copytree(bert, "bert", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads(Path("bert/config.json").read_text())
    Path("bert/config.json").write_text(json.dumps({**config, "hidden_act": "gelu_new"}))
    return "bert"


@pytest.mark.parametrize("kernels", [True, False])
def test_every_way_to_load_a_network_fuses_gelu(kernels: bool, gpt2: Path, bert_with_gelu_new: str):
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2}
    for model, objective, auto_model, tokenizer in (
        (Model(name="gpt2", from_scratch=True, config=sizes), "clm", AutoModelForCausalLM, gpt2),
        (Model(name=str(gpt2)), "clm", AutoModelForCausalLM, gpt2),
        (Model(encoder="bert", decoder="bert"), "seq2seq", AutoModelForSeq2SeqLM, bert_with_gelu_new),
    ):
        config, known = load_config(model, objective), AutoTokenizer.from_pretrained(tokenizer)
        network, _ = load_network(model, config, known, auto_model, kernels=kernels)
        assert has_gelu_new(network) is not kernels, model.name


# --- --kernels off ---------------------------------------------------------------------------------------------------
DRY = {
    "gpt2": "resid_pdrop=0,embd_pdrop=0,attn_pdrop=0",
    "bert": "hidden_dropout_prob=0,attention_probs_dropout_prob=0",
}


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "family"), [("clm", "gpt2"), ("mlm", "bert")])
def test_without_dropout_kernels_auto_and_off_give_the_same_losses(objective: str, family: str, material: Path):
    steps = ["--val-split", 0.1, "--max-steps", 5, "--lr", 1e-3, "--log-every", 1]
    flags = [objective, *scratch(family), "--model-config", DRY[family], "--data", material / "text.jsonl", *steps]
    for kernels in ("auto", "off"):
        trained(*flags, "--kernels", kernels, "-o", kernels)
    auto, off = (
        [value for _, *losses, _ in outcome_of(run)[1] for value in losses if value is not None]
        for run in ("auto", "off")
    )
    assert len(auto) > 5 and auto == pytest.approx(off, rel=1e-6)


def test_kernels_off_leaves_the_functions_of_torch_and_transformers(material: Path, monkeypatch: pytest.MonkeyPatch):
    found = set()

    def note(self: Trainer, model: torch.nn.Module, *given: Any, **options: Any) -> torch.Tensor:
        found.add((F.dropout, ALL_ATTENTION_FUNCTIONS["sdpa"], has_gelu_new(model)))
        return step(self, model, *given, **options)

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", note)
    trained(
        "clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 2, "--kernels", "off", "-o", "run"
    )
    assert found == {(TORCH_DROPOUT, sdpa_attention_forward, True)}


def test_eval_of_a_run_uses_the_kernels_of_the_run(material: Path, monkeypatch: pytest.MonkeyPatch):
    data = ["--data", material / "text.jsonl", "--val-split", 0.1, "--max-steps", 1]
    monkeypatch.setattr("lmtrain.modeling.network.fuse_gelu", lambda network: pytest.fail("GELU was fused"))
    metrics = trained("clm", *scratch("gpt2"), *data, "--kernels", "off", "-o", "run")["metrics"]
    assert lmtrain("eval", "--model", "run", "--json").json["metrics"] == pytest.approx(metrics, rel=1e-6)


def test_a_run_is_not_resumed_with_other_kernels(material: Path):
    """Dropout draws other numbers, so the rest of the run would be another one."""
    flags = ["clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--save-every", 1, "-o", "run"]
    trained(*flags, "--max-steps", 1)
    outcome = lmtrain(*flags, "--max-steps", 2, "--kernels", "off", "--resume", "auto")
    assert outcome.code == 2 and "train.kernels was auto and is off" in outcome.err.replace("\n", " ")


def test_a_run_reports_what_fell_back(material: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_attention, "KNOWN", cpu_attention.KNOWN - {"scaling"})
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 2, "-o", "run")
    assert outcome.code == 0
    told = outcome.err.replace("\n", " ")
    assert told.count("attention with the argument scaling is computed by transformers' own function") == 1
