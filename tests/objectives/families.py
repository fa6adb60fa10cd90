"""Check one family of models: train, evaluate, prompt, save and load it; then the same with LoRA, and merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, trained
from peft import PeftModel
from tiny_models import FAMILIES, TOKENIZERS, as_option
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.commands.smoke import sizes
from lmtrain.modeling import lora

AUTO = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
STEPS = 30


def scratch(objective: str, family: str) -> list[Any]:
    """The flags of a tiny model of the family."""
    architecture, more, tokenizer = FAMILIES[objective][family]
    halves = architecture.split("+")
    named = ["--model", *halves] if len(halves) == 1 else ["--encoder", halves[0], "--decoder", halves[1]]
    config = {name: size for half in halves for name, size in sizes(half).items()} | more
    tokenizer = tokenizer or TOKENIZERS[objective]
    return [*named, "--from-scratch", "--model-config", as_option(config), "--tokenizer", tokenizer]


def logits(network: Any) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    was_training, more = network.training, {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = network.eval()(input_ids=ids, **more).logits
    network.train(was_training)
    return found


def check_family(objective: str, family: str, material: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train, evaluate, prompt, save, load, adapt and merge a tiny model; its row of the table."""
    data = ["--data", material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")]
    common = [*data, "--max-steps", STEPS, "--eval-every", STEPS, "--val-split", 0.1, "-b", 8, "--samples", 1]
    at_save = _watch(monkeypatch)

    whole = trained(objective, *scratch(objective, family), *common, "--lr", 5e-3, "-o", "run")
    assert whole["train"]["last_loss"] < whole["train"]["first_loss"]
    assert whole["metrics"]["eval_loss"] < whole["initial_metrics"]["eval_loss"]
    again = lmtrain("eval", "--model", "run", "--json", "--quiet").json["metrics"]
    assert again["eval_loss"] == pytest.approx(whole["metrics"]["eval_loss"], rel=1e-6)
    _check_prompting("run", objective)
    network, report = AUTO[objective].from_pretrained("run", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Equal weights; GPT-2's and T5's GELU is computed in one pass by lmtrain, in eight by transformers.
    assert torch.allclose(logits(network), at_save[-1], rtol=0, atol=2e-6 * float(at_save[-1].abs().max()))

    adapted = trained(objective, "--model", "run", *common, "--lora", "--lora-r", 4, "--lr", 5e-3, "-o", "adapter")
    assert adapted["metrics"]["eval_loss"] < whole["metrics"]["eval_loss"]
    _check_prompting("adapter", objective)
    assert lmtrain("merge", "adapter", "-o", "merged", "--quiet").code == 0
    with_adapter = logits(PeftModel.from_pretrained(network, "adapter"))
    merged = logits(AUTO[objective].from_pretrained("merged"))
    assert torch.allclose(with_adapter, at_save[-1], atol=1e-5)
    gap = float((merged - with_adapter).abs().max())
    assert gap <= 1e-5
    return {
        "family": family,
        "objective": objective,
        "loss": (whole["train"]["first_loss"], whole["train"]["last_loss"]),
        "eval_loss": (whole["initial_metrics"]["eval_loss"], whole["metrics"]["eval_loss"]),
        "lora": adapted["metrics"]["eval_loss"],
        "gap": gap,
    }


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every network at the time it is saved."""
    found, save = [], lora.save

    def watched(network: Any, *arguments: Any) -> None:
        found.append(logits(network))
        save(network, *arguments)

    monkeypatch.setattr(lora, "save", watched)
    return found


def _check_prompting(model: str, objective: str) -> None:
    mask = AutoTokenizer.from_pretrained("run").mask_token if objective == "mlm" else ""
    outcome = lmtrain("generate", "--model", model, "--prompt", f"the cat {mask}", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.json["masks"] if objective == "mlm" else "output" in outcome.json


def table_row(line: dict[str, Any]) -> str:
    (first, last), (before, after) = line["loss"], line["eval_loss"]
    return (
        f"{line['objective']:8} {line['family']:12} loss {first:7.3f} → {last:6.3f}   eval_loss {before:7.3f} → {after:6.3f}"
        f"   LoRA {line['lora']:6.3f}   merged − adapter {line['gap']:.1e}"
    )
