"""`lmtrain plan`: what a training would take."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import imported_by, lmtrain, scratch, trained

SMALL = ["--data", "text.jsonl", "-L", 32, "--no-packing", "-b", 4]


@pytest.fixture(autouse=True)
def data(material: Path) -> None:
    for name in ("text.jsonl", "pairs.jsonl"):
        Path(name).write_bytes((material / name).read_bytes())


def planned(*arguments: Any) -> dict[str, Any]:
    outcome = lmtrain("plan", *arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


@pytest.mark.parametrize("objective, model", [("clm", "gpt2"), ("mlm", "bert"), ("seq2seq", "t5")])
def test_steps_and_parameters_are_those_of_the_training(objective: str, model: str):
    flags = [objective, *scratch(model), "--epochs", 2]
    flags += ["--data", "pairs.jsonl", "-b", 4] if objective == "seq2seq" else SMALL
    plan = planned(*flags)
    results = trained(*flags, "-o", "run")
    assert plan["steps"] == results["train"]["steps"] == 2 * plan["steps_per_epoch"]
    from safetensors.torch import load_file

    saved = sum(tensor.numel() for tensor in load_file("run/model.safetensors").values())
    assert plan["parameters"] == plan["trainable_parameters"] == saved
    assert plan["tokens_per_epoch"] == results["data"]["train"]["tokens_used"]
    assert set(plan["memory"]) >= {"weights", "gradients", "optimizer", "activations", "logits"}
    assert plan["memory"]["weights"] == plan["memory"]["gradients"] == 4 * saved
    assert plan["memory"]["optimizer"] == 8 * saved


@pytest.mark.parametrize("model", ["gpt2", "bert", "modernbert", "t5", "bart"])
def test_activations_equal_what_autograd_holds(model: str):
    """Bytes that are saved for backward on the meta device and on the CPU, without the kernels of lmtrain."""
    from tiny_models import TINY
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    from lmtrain.modeling.activations import saved_bytes

    auto = {"bert": AutoModelForMaskedLM, "modernbert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM,
            "bart": AutoModelForSeq2SeqLM}.get(model, AutoModelForCausalLM)  # fmt: skip
    sizes = {
        name: int(value) for name, value in (part.split("=") for part in TINY[model].split(",")) if value.isdigit()
    }
    config = AutoConfig.for_model(model, **sizes, vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                                  cls_token_id=1, sep_token_id=2, decoder_start_token_id=0)  # fmt: skip
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout", "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    with torch.device("meta"):
        outline = auto.from_config(config)
    network = auto.from_config(config).train()
    weights = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    inputs = {"input_ids": torch.ones(4, 24, dtype=torch.long)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.ones(4, 16, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network(**inputs).logits
    real = sum(storage.nbytes() for pointer, storage in held.items() if pointer != logits.untyped_storage().data_ptr())
    assert saved_bytes(outline, 4, 24, 16, kernels=False) == pytest.approx(real, rel=0.1)


def test_lora_trains_a_part_and_checkpointing_saves_memory(gpt2: Path):
    whole = planned("clm", "--model", gpt2, *SMALL)
    adapted = planned("clm", "--model", gpt2, "--lora", *SMALL)
    results = trained("clm", "--model", gpt2, "--lora", *SMALL, "--max-steps", 1, "-o", "run")
    assert 0 < adapted["trainable_parameters"] < whole["parameters"] < adapted["parameters"]
    assert adapted["memory"]["optimizer"] == 8 * adapted["trainable_parameters"]
    from safetensors.torch import load_file

    saved = load_file("run/adapter_model.safetensors")
    assert adapted["trainable_parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert results["train"]["steps"] == 1
    fewer = planned("clm", "--model", gpt2, "--gradient-checkpointing", *SMALL)
    assert fewer["memory"]["activations"] < whole["memory"]["activations"] / 2


def test_the_largest_batch_is_the_last_power_of_two_within_the_memory():
    flags = ["clm", *scratch("gpt2"), *SMALL]
    first = planned(*flags)
    limit = int(first["peak_memory_bytes"] + 100e6)
    plan = planned(*flags, "--memory", limit)
    size = plan["largest_batch_size"]
    assert math.log2(size) % 1 == 0
    fixed = plan["peak_memory_bytes"] - plan["memory"]["activations"]
    a_row = plan["memory"]["activations"] / plan["largest_batch"]["rows"]
    assert fixed + a_row * size < 1.1 * limit and fixed + 1.2 * a_row * 2 * size > 0.9 * limit
    assert planned(*flags, "--memory", "1MB")["largest_batch_size"] == 0


def test_a_gate_on_the_plan_fails_with_exit_code_4():
    flags = ["plan", "clm", *scratch("gpt2"), *SMALL]
    assert lmtrain(*flags, "--assert", "plan.peak_memory_bytes<8e12").code == 0
    outcome = lmtrain(*flags, "--assert", "plan.peak_memory_bytes<1e3", "--assert", "plan.steps>0")
    assert outcome.code == 4 and "gate failed: plan.peak_memory_bytes<1e3" in outcome.err
    assert lmtrain(*flags, "--assert", "plan.nothing<1e3").code == 4


def test_a_recipe_is_planned_and_sizes_are_checked():
    Path("own.yaml").write_text(
        "objective: clm\nmodel: {name: gpt2, from_scratch: true, config: {n_layer: 1, n_embd: 16, n_head: 2}, tokenizer: byte}\n"
        "data: {train: text.jsonl, max_length: 32}\n"
    )
    plan = planned("own.yaml", "--epochs", 1)
    assert plan["objective"] == "clm" and plan["steps"] > 0
    outcome = lmtrain("plan", "own.yaml", "--memory", "24 apples")
    assert outcome.code == 2 and "write it as 24GB" in outcome.err


def test_its_help_imports_nothing_heavy():
    assert not imported_by("plan", "clm", "--help") & {"torch", "transformers"}
