"""Networks: weights that are damaged, missing, new or in half precision; code that comes with a model."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import lmtrain, scratch, trained
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel


def train_on(model: Path, material: Path, objective: str = "clm", *flags: str):
    return lmtrain(
        objective, "--model", model, "--data", material / "text.jsonl", "--max-steps", 1, "-o", "run", *flags
    )


def damaged(gpt2: Path, change) -> Path:
    folder = Path("damaged")
    shutil.copytree(gpt2, folder, ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda w: w.pop("transformer.h.1.attn.c_attn.weight"),
            "weights are missing: transformer.h.1.attn.c_attn.weight",
        ),
        (
            lambda w: w.update({"transformer.h.7.ln_1.weight": torch.ones(32)}),
            "no place for: transformer.h.7.ln_1.weight",
        ),
        (lambda w: w["transformer.ln_f.weight"].fill_(float("nan")), "transformer.ln_f.weight holds NaN"),
        (lambda w: w.update({"transformer.ln_f.weight": torch.ones(31)}), "transformer.ln_f.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, wanted: str, gpt2: Path, material: Path):
    outcome = train_on(damaged(gpt2, change), material)
    assert outcome.code == 3
    assert wanted in outcome.err.replace("\n", " ")
    assert not Path("run").exists()


@pytest.mark.parametrize("cut", [0, 100])
def test_truncated_weights_are_refused(cut: int, gpt2: Path, material: Path):
    shutil.copytree(gpt2, "cut", ignore=shutil.ignore_patterns("checkpoints"))
    os.truncate("cut/model.safetensors", cut)
    assert train_on(Path("cut"), material).code == 3


def test_pickle_is_refused_without_being_read(gpt2: Path, material: Path):
    shutil.copytree(gpt2, "pickled", ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    Path("pickled/pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\nX\x0b\x00\x00\x00touch caught\x85R.")
    outcome = train_on(Path("pickled"), material)
    assert outcome.code == 3
    assert "pickle" in outcome.err
    assert not Path("caught").exists()


def test_remote_code_is_refused_without_being_run(gpt2: Path, material: Path):
    shutil.copytree(gpt2, "remote", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads(Path("remote/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    Path("remote/config.json").write_text(json.dumps(config))
    Path("remote/evil.py").write_text("open('caught', 'w')\n")
    outcome = train_on(Path("remote"), material)
    assert outcome.code == 3
    assert "--trust-remote-code" in outcome.err
    assert not Path("caught").exists()


def test_new_head_is_reported(bert: Path, material: Path):
    shutil.copytree(bert, "encoder", ignore=shutil.ignore_patterns("checkpoints"))
    config = BertConfig.from_pretrained("encoder", architectures=["BertModel"])
    BertModel(config).save_pretrained("encoder")
    outcome = train_on(Path("encoder"), material, "mlm")
    assert outcome.code == 0
    assert "the head is new and starts at random: cls.predictions" in outcome.err


def test_bfloat16_checkpoint_trains_in_float32(gpt2: Path, material: Path):
    folder = damaged(gpt2, lambda weights: weights.update({k: w.bfloat16() for k, w in weights.items()}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert train_on(folder, material).code == 0
    assert {w.dtype for w in load_file("run/model.safetensors").values()} == {torch.float32}


def test_from_scratch_uses_given_sizes_and_the_vocabulary(material: Path):
    trained("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 0, "-o", "run")
    config = json.loads(Path("run/config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["vocab_size"]) == (2, 32, 300)
    assert config["eos_token_id"] == 3
