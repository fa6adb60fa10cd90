"""Runs of several processes: sharded by FSDP2, saved in parts, and resumed on another number of processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, outcome_of
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import WITHOUT_DROPOUT, as_option, scratch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from lmtrain.errors import UsageError
from lmtrain.modeling.sharding import blocks, check_shardable

AUTO = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
SHARDED = ("--num-processes", 2, "--shard", "fsdp2")


def untrained(family: str, **more: Any) -> Any:
    objective, sizes = WITHOUT_DROPOUT[family]
    return AUTO[objective].from_config(AutoConfig.for_model(family, **{**sizes, **more}))


@pytest.mark.parametrize("family", WITHOUT_DROPOUT)
def test_the_blocks_of_a_model_are_its_layers(family: str):
    network = untrained(family)
    found = blocks(network)
    config = network.config
    encoder = getattr(config, "encoder_layers", None) or getattr(config, "num_encoder_layers", None)
    layers = encoder * 2 if encoder else config.num_hidden_layers * (2 if config.is_encoder_decoder else 1)
    # XLM keeps its attentions, norms and feed-forward layers in lists of their own.
    assert len(found) == (layers if family != "xlm" else 4 * layers)
    held = [id(parameter) for block in found for parameter in block.parameters()]
    assert len(held) == len(set(held)) and id(network.get_output_embeddings().weight) not in held


def test_a_model_that_skips_layers_at_random_is_refused():
    with pytest.raises(UsageError, match="set decoder_layerdrop to 0 in its configuration"):
        check_shardable(untrained("bart", decoder_layerdrop=0.1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "adafactor"], "the state of --optim adafactor cannot be sharded; choose adamw_torch"),
        (["--compile"], "--shard: does not work with --compile"),
    ],
)
def test_what_cannot_be_sharded_is_refused(flags: list[str], message: str, material: Path):
    done = lmtrain("clm", "--model", "gpt2", "--data", material / "prose.txt", "--shard", "fsdp2", *flags)
    assert done.code == 2 and message in done.err


def in_processes(*arguments: Any) -> None:
    """Run the command line in a process of its own, which may start others."""
    command = [sys.executable, "-m", "lmtrain", *map(str, arguments), "--dist-timeout", "60s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def interrupted(run: str) -> None:
    """Make a completed run of 4 steps one that ended after 2."""
    shutil.rmtree(Path(run, "checkpoints/checkpoint-4"))
    Path(run, "results.json").unlink()


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_sharded_run_equals_one_process_and_resumes_on_another_number(family: str, material: Path):
    objective, sizes = WITHOUT_DROPOUT[family]
    data = material / ("prose.txt" if objective == "clm" else "pairs.jsonl")
    command = [objective, "--model", family, "--from-scratch", "--model-config", as_option(sizes), "--data", data]
    command += ["--tokenizer", "byte", "-b", 2, "--max-steps", 4, "--save-every", 2, "--keep", 9, "--log-every", 1]
    command += ["--val-split", 0.2, "--samples", 1]
    in_processes(*command, "--grad-accum", 2, "-o", "one")
    in_processes(*command, *SHARDED, "-o", "two")
    assert losses("two") == pytest.approx(losses("one"), rel=1e-6)
    one, two = (load_file(Path(run, "model.safetensors")) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)

    parts = sorted(Path("two/checkpoints/checkpoint-2/sharded").iterdir())
    sizes_of = [sum(file.stat().st_size for file in parts if f"shard-0000{rank}" in file.name) for rank in (1, 2)]
    assert sizes_of[0] == pytest.approx(sizes_of[1], rel=0.1)  # each process has written its half
    with safe_open(parts[0], "pt") as part:
        assert any(name.startswith("optimizer.") for name in part.keys())  # noqa: SIM118  # it is no dictionary

    for run, flags in (("one", [*SHARDED, "--grad-accum", 1]), ("two", ["--num-processes", 1, "--grad-accum", 2])):
        interrupted(run)
        before = losses(run)
        in_processes("run", f"{run}/recipe.yaml", "--resume", "auto", "-o", run, *flags)
        assert losses(run) == pytest.approx(before, rel=1e-6)
        for name, tensor in load_file(Path(run, "model.safetensors")).items():
            torch.testing.assert_close(tensor, one[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--shard", "fsdp2"], ["--shard", "fsdp2", "--async-save"]])
def test_several_processes_resume_bit_for_bit(flags: list[str], material: Path):
    command = ["clm", *scratch("gpt2"), "--data", material / "prose.txt", "-b", 2, "--max-steps", 4, "--save-every", 2]
    in_processes(*command, "--keep", 9, "--val-split", 0.2, "-o", "run", "--num-processes", 2, *flags)
    whole = outcome_of("run")
    interrupted("run")
    in_processes("run", "run/recipe.yaml", "--resume", "auto", "-o", "run")
    assert outcome_of("run") == whole
