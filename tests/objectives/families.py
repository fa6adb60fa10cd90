"""One family of models through all that lmtrain does: trained, scored, asked, saved, read again; then so by LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, trained
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.commands.smoke import sizes
from lmtrain.modeling import lora

AUTO = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
TOKENIZERS = {"clm": "bpe:300", "mlm": "wordpiece:200", "seq2seq": "unigram:80"}
STEPS = 30

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # T5 v1.1, and so Flan-T5
FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any], str | None]]] = {
    "clm": {name: (name, {}, None) for name in ("gpt2", "gpt_neo", "opt", "llama", "mistral", "qwen3", "gemma", "phi")},
    "mlm": {
        name: (name, {}, None)
        for name in ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert")
    },
    "seq2seq": {
        "t5": ("t5", {}, None), "mt5": ("mt5", {}, None), "byt5": ("t5", {}, "byte"), "flan-t5": ("t5", GATED, None),
        **{name: (name, {}, None) for name in ("bart", "mbart", "marian", "m2m_100", "pegasus", "prophetnet", "led")},
        "bert2bert": ("bert+bert", {}, None), "bert2gpt2": ("bert+gpt2", {}, None),
    },
}  # fmt: skip
"""Objective -> family -> (architecture or encoder+decoder, further sizes, tokenizer)."""


def scratch(objective: str, family: str) -> list[Any]:
    """The flags of a tiny model of the family."""
    architecture, more, tokenizer = FAMILIES[objective][family]
    halves = architecture.split("+")
    named = ["--model", *halves] if len(halves) == 1 else ["--encoder", halves[0], "--decoder", halves[1]]
    config = {name: size for half in halves for name, size in sizes(half).items()} | more
    values = ",".join(f"{name}={value}".replace("'", '"').replace("False", "false") for name, value in config.items())
    return [*named, "--from-scratch", "--model-config", values, "--tokenizer", tokenizer or TOKENIZERS[objective]]


def logits(network: Any) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    was_training, more = network.training, {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = network.eval()(input_ids=ids, **more).logits
    network.train(was_training)
    return found


def carry_through(objective: str, family: str, material: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The line of the family in the table; asserts on the way."""
    data = ["--data", material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")]
    common = [*data, "--max-steps", STEPS, "--val-split", 0.1, "-b", 8, "--samples", 1]
    at_save = _watch(monkeypatch)

    whole = trained(objective, *scratch(objective, family), *common, "--lr", 5e-3, "-o", "run")
    assert whole["train"]["last_loss"] < whole["train"]["first_loss"]
    assert whole["metrics"]["eval_loss"] < whole["initial_metrics"]["eval_loss"]
    again = lmtrain("eval", "--model", "run", "--json", "--quiet").json["metrics"]
    assert again["eval_loss"] == pytest.approx(whole["metrics"]["eval_loss"], rel=1e-6)
    _asked("run", objective)
    network, report = AUTO[objective].from_pretrained("run", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Equal weights; GPT-2's and T5's GELU is computed in one pass by lmtrain, in eight by transformers.
    assert torch.allclose(logits(network), at_save[-1], rtol=0, atol=2e-6 * float(at_save[-1].abs().max()))

    adapted = trained(objective, "--model", "run", *common, "--lora", "--lora-r", 4, "--lr", 5e-3, "-o", "adapter")
    assert adapted["metrics"]["eval_loss"] < whole["metrics"]["eval_loss"]
    _asked("adapter", objective)
    assert lmtrain("merge", "adapter", "-o", "merged", "--quiet").code == 0
    with_adapter = logits(PeftModel.from_pretrained(network, "adapter"))
    merged = logits(AUTO[objective].from_pretrained("merged"))
    assert torch.allclose(with_adapter, at_save[-1], atol=1e-5)
    gap = float((merged - with_adapter).abs().max())
    assert gap <= 1e-5
    return {
        "family": family, "objective": objective, "loss": (whole["train"]["first_loss"], whole["train"]["last_loss"]),
        "eval_loss": (whole["initial_metrics"]["eval_loss"], whole["metrics"]["eval_loss"]),
        "lora": adapted["metrics"]["eval_loss"], "gap": gap,
    }  # fmt: skip


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every network that is saved, as they are when it is."""
    found, save = [], lora.save

    def watched(network: Any, *arguments: Any) -> None:
        found.append(logits(network))
        save(network, *arguments)

    monkeypatch.setattr(lora, "save", watched)
    return found


def _asked(model: str, objective: str) -> None:
    mask = AutoTokenizer.from_pretrained("run").mask_token if objective == "mlm" else ""
    outcome = lmtrain("generate", "--model", model, "--prompt", f"the cat {mask}", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.json["masks"] if objective == "mlm" else "output" in outcome.json


def told(line: dict[str, Any]) -> str:
    (first, last), (before, after) = line["loss"], line["eval_loss"]
    return (f"{line['objective']:8} {line['family']:12} loss {first:7.3f} → {last:6.3f}   eval_loss {before:7.3f} → {after:6.3f}"
            f"   LoRA {line['lora']:6.3f}   merged − adapter {line['gap']:.1e}")  # fmt: skip
