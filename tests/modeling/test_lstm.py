"""The LSTM encoder-decoder computes what its papers say, and is a model of transformers."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import lmtrain, trained
from transformers import AutoModelForSeq2SeqLM

from lmtrain.modeling.lstm_config import LSTMConfig

LENGTHS = (7, 4, 1)
VARIANTS = [*product(("none", "luong", "bahdanau"), (False, True), (False, True))]
SIZES = "d_model=16,num_layers=2,dropout=0"


def network(attention: str, reverse: bool, bidirectional: bool) -> Any:
    """A small model with large weights, so that a difference is seen."""
    config = LSTMConfig(
        vocab_size=50,
        d_model=16,
        attention=attention,
        reverse_source=reverse,
        bidirectional=bidirectional,
        init_range=0.5,
    )
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, mask, labels) of three rows, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(3, 50, (3, length), generator=generator) for length in (7, 5))
    mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
    labels[1, 3:] = -100
    return ids.masked_fill(mask == 0, 1), mask, labels


def by_hand(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits [target length, vocabulary] of one row without padding, a token at a time with the cell's formula."""
    config, weights = model.config, dict(model.model.named_parameters())
    table = weights["shared.weight"]

    def cell(name: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gates = F.linear(x, weights[name.format("weight_ih")], weights[name.format("bias_ih")])
        gates = gates + F.linear(h, weights[name.format("weight_hh")], weights[name.format("bias_hh")])
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    source = ids.flip(0) if config.reverse_source else ids
    inputs, last = list(4.0 * table[source]), []
    for layer in range(2):
        sides = []
        for suffix in ("", "_reverse")[: 1 + config.bidirectional]:
            h = c = torch.zeros(16 // (1 + config.bidirectional))
            outputs = []
            for x in inputs[::-1] if suffix else inputs:
                h, c = cell(f"encoder.lstm.{{}}_l{layer}{suffix}", x, h, c)
                outputs.append(h)
            sides.append((outputs[::-1] if suffix else outputs, h, c))
        inputs = [torch.cat(parts) for parts in zip(*(outputs for outputs, _, _ in sides), strict=True)]
        last.append(tuple(torch.cat([side[n] for side in sides]) for n in (1, 2)))
    memory = torch.stack(inputs[::-1] if config.reverse_source else inputs)

    logits = []
    for token in [config.decoder_start_token_id, *targets.tolist()[:-1]]:
        x, context = 4.0 * table[token], torch.zeros(0)
        if config.attention == "bahdanau":
            scores = [
                weights["decoder.score.weight"]
                @ (weights["decoder.query.weight"] @ last[-1][0] + weights["decoder.key.weight"] @ state).tanh()
                for state in memory
            ]
            context = torch.cat(scores).softmax(0) @ memory
            x = torch.cat([x, context])
        for layer in range(2):
            last[layer] = cell(f"decoder.lstm.{{}}_l{layer}", x, *last[layer])
            x = last[layer][0]
        if config.attention == "luong":
            scores = [(weights["decoder.query.weight"] @ x) @ state for state in memory]
            context = torch.stack(scores).softmax(0) @ memory
        if config.attention != "none":
            x = (weights["decoder.combine.weight"] @ torch.cat([context, x])).tanh()
        logits.append(table @ x)
    return torch.stack(logits)


@pytest.mark.parametrize(("attention", "reverse", "bidirectional"), VARIANTS)
@torch.no_grad()
def test_a_padded_batch_has_the_logits_and_the_loss_of_each_row_computed_by_hand(
    attention: str, reverse: bool, bidirectional: bool
):
    model, (ids, mask, labels) = network(attention, reverse, bidirectional), batch()
    out, nll = model(input_ids=ids, attention_mask=mask, labels=labels), 0.0
    for row, length in enumerate(LENGTHS):
        targets = labels[row][labels[row] != -100]
        expected = by_hand(model, ids[row, :length], targets)
        assert torch.allclose(out.logits[row, : len(targets)], expected, atol=1e-5)
        nll += float(F.cross_entropy(expected.double(), targets, reduction="sum"))
    assert float(out.loss) == pytest.approx(nll / int((labels != -100).sum()), rel=1e-6)


@pytest.mark.parametrize(("attention", "reverse", "bidirectional"), VARIANTS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_the_last_state_writes_what_reading_all_tokens_again_writes(
    attention: str, reverse: bool, bidirectional: bool, beams: int
):
    model, (ids, mask, _) = network(attention, reverse, bidirectional), batch()
    wanted = {"input_ids": ids, "attention_mask": mask, "num_beams": beams, "max_new_tokens": 12}
    assert torch.equal(model.generate(**wanted), model.generate(**wanted, use_cache=False))


def test_a_run_is_loaded_by_transformers_once_lmtrain_is_imported(material: Path):
    sizes = f"{SIZES},attention=luong"
    model = ["--model", "lstm", "--from-scratch", "--model-config", sizes, "--tokenizer", "unigram:60"]
    trained("seq2seq", *model, "--data", material / "pairs.jsonl", "--max-steps", 3, "-o", "run")
    program = (
        "import lmtrain, torch; from transformers import AutoModelForSeq2SeqLM as A; "
        "m = A.from_pretrained('run').eval(); i = torch.arange(5, 25)[None]; "
        "torch.save(m(input_ids=i, decoder_input_ids=i).logits, 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    ids = torch.arange(5, 25)[None]
    loaded = AutoModelForSeq2SeqLM.from_pretrained("run").eval()
    assert torch.equal(torch.load("logits.pt"), loaded(input_ids=ids, decoder_input_ids=ids).logits)
    assert loaded.lm_head.weight is loaded.model.encoder.embed_tokens.weight


def test_training_lowers_the_loss(material: Path):
    data = ["--data", material / "pairs.jsonl", "--val-split", 0.1, "-b", 16, "--seed", 1]
    model = ["--model", "lstm", "--from-scratch", "--model-config", f"{SIZES},attention=bahdanau,reverse_source=true"]
    results = trained(
        "seq2seq", *model, "--tokenizer", "unigram:60", *data, "--max-steps", 40, "--lr", 0.02, "-o", "run"
    )
    assert results["metrics"]["eval_loss"] < 0.8 * results["initial_metrics"]["eval_loss"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("attention=dot", "attention dot: there are none, luong, bahdanau"),
        ("d_model=15,bidirectional=true", "d_model 15: a bidirectional encoder needs an even number"),
        ("layers=2", "layers"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(sizes: str, message: str, material: Path):
    model = ["--model", "lstm", "--from-scratch", "--model-config", sizes, "--tokenizer", "unigram:60"]
    outcome = lmtrain("seq2seq", *model, "--data", material / "pairs.jsonl", "--max-steps", 1, "-o", "run")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_checkpointing_that_the_model_does_not_have_is_refused(material: Path):
    model = ["--model", "lstm", "--from-scratch", "--model-config", SIZES, "--tokenizer", "unigram:60"]
    data = ["--data", material / "pairs.jsonl", "--max-steps", 1, "-o", "run"]
    outcome = lmtrain("seq2seq", *model, *data, "--gradient-checkpointing")
    assert outcome.code == 2
    assert "--gradient-checkpointing: transformers has none for lstm; leave it out" in outcome.err
