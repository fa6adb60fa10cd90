"""LoRA: what is trained and saved; adapter, merged model and resumed run agree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, outcome_of, trained
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

AUTO = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
BASES = [("clm", "gpt2", "text.jsonl"), ("mlm", "bert", "text.jsonl"), ("seq2seq", "t5", "pairs.jsonl")]
FLAGS = ["--lora", "--lora-dropout", 0, "--max-steps", 4, "--lr", 1e-2, "--val-split", 0.1]


def logits(network: Any, ids: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        return network.eval()(input_ids=ids, **more).logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft calls it
@pytest.mark.parametrize(("objective", "base", "data"), BASES)
@pytest.mark.parametrize("kind", [[], ["--dora"], ["--rslora", "--lora-alpha", 8]])
def test_merged_model_matches_adapter(
    kind: list, objective: str, base: str, data: str, material: Path, request: pytest.FixtureRequest
):
    folder = request.getfixturevalue(base)
    before = load_file(folder / "model.safetensors")
    results = trained(objective, "--model", folder, "--data", material / data, *FLAGS, *kind, "-o", "run")
    assert results["metrics"]["eval_loss"] < results["initial_metrics"]["eval_loss"]
    assert not Path("run/model.safetensors").exists(), "the base is not written again"
    assert all(torch.equal(t, before[n]) for n, t in load_file(folder / "model.safetensors").items())

    outcome = lmtrain("merge", "run", "-o", "merged")
    assert outcome.code == 0, outcome.err
    ids = torch.arange(4, 24)[None]
    plain = AUTO[objective].from_pretrained(folder)
    unadapted = logits(plain, ids)
    adapted = logits(PeftModel.from_pretrained(plain, "run"), ids)
    merged = logits(AUTO[objective].from_pretrained("merged"), ids)
    assert (merged - adapted).abs().max() <= 1e-5
    assert (unadapted - adapted).abs().max() > 1e-3, "training left a trace"
    run, whole = (
        lmtrain("eval", "--model", model, "--data", material / data, "--json").json["metrics"]["eval_loss"]
        for model in ("run", "merged")
    )
    assert run == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "base", "data"), BASES)
def test_eval_of_an_adapter_matches_training(
    objective: str, base: str, data: str, material: Path, request: pytest.FixtureRequest
):
    results = trained(
        objective, "--model", request.getfixturevalue(base), "--data", material / data, *FLAGS, "-o", "run"
    )
    again = lmtrain("eval", "--model", "run", "--json").json["metrics"]
    assert again == pytest.approx(results["metrics"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "base", "data"), BASES)
def test_resumed_adapter_equals_uninterrupted_run(
    objective: str, base: str, data: str, material: Path, request: pytest.FixtureRequest
):
    often = ["--save-every", 2, "--eval-every", 1, "--log-every", 1]
    flags = [objective, "--model", request.getfixturevalue(base), "--data", material / data, *FLAGS, *often]
    flags += ["--lora-dropout", 0.1, "--lr-scheduler", "constant"]
    trained(*flags, "-o", "whole")
    trained(*flags, "-o", "halved", "--max-steps", 2)
    trained(*flags, "-o", "halved", "--resume", "auto")
    whole, halved = (outcome_of(run, "adapter_model.safetensors") for run in ("whole", "halved"))
    assert whole == halved
    checkpoint = {path.name for path in Path("whole/checkpoints/checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in checkpoint and "model.safetensors" not in checkpoint


@pytest.mark.slow
def test_best_adapter_is_kept(gpt2: Path, material: Path):
    more = ["--lr", 0.03, "--max-steps", 6, "--eval-every", 1, "--lr-scheduler", "constant", "-o", "run"]
    results = trained("clm", "--model", gpt2, "--data", material / "text.jsonl", *FLAGS, *more)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line and line["step"]}
    best = min(losses.values())
    assert best < losses[max(losses)]
    assert results["metrics"]["eval_loss"] == best
    again = lmtrain("eval", "--model", "run", "--json").json["metrics"]
    assert again["eval_loss"] == pytest.approx(best, rel=1e-5)


def test_training_continues_an_adapter(gpt2: Path, material: Path):
    data = ["--data", material / "text.jsonl"]
    trained("clm", "--model", gpt2, *data, *FLAGS, "-o", "first")
    outcome = lmtrain("clm", "--model", "first", *data, *FLAGS, "-o", "second")
    assert outcome.code == 0 and "continuing to train the adapter first" in outcome.err.replace("\n", " ")
    first, second = (json.loads(Path(run, "adapter_config.json").read_text()) for run in ("first", "second"))
    assert first == second
    before, after = (Path(run, "adapter_model.safetensors") for run in ("first", "second"))
    assert load_file(before).keys() == load_file(after).keys()
    initial = json.loads(Path("second/results.json").read_text())["initial_metrics"]["eval_loss"]
    assert initial == pytest.approx(
        json.loads(Path("first/results.json").read_text())["metrics"]["eval_loss"], rel=1e-5
    )
    # Without --lora the whole model is trained, from the merged weights on.
    whole = trained("clm", "--model", "first", *data, "--max-steps", 1, "--val-split", 0.1, "-o", "whole")
    assert whole["initial_metrics"]["eval_loss"] == pytest.approx(initial, rel=1e-5)
    assert Path("whole/model.safetensors").exists()


def test_new_head_is_trained_in_full_and_saved(bert: Path, material: Path):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    config = BertConfig.from_pretrained(bert)
    torch.manual_seed(0)
    BertModel(config).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")
    trained("mlm", "--model", "encoder", "--data", material / "text.jsonl", *FLAGS, "-o", "run")
    config = json.loads(Path("run/adapter_config.json").read_text())
    assert "cls.predictions.transform.dense" in config["modules_to_save"]
    saved = load_file("run/adapter_model.safetensors")
    assert "base_model.model.cls.predictions.transform.dense.weight" in saved
    assert not any("word_embeddings" in name for name in saved)
    results = json.loads(Path("run/results.json").read_text())
    again = lmtrain("eval", "--model", "run", "--json").json["metrics"]
    assert again == pytest.approx(results["metrics"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_trained_and_saved_with_the_adapter(tied: bool, gpt2: Path, material: Path):
    tokenizer, network = AutoTokenizer.from_pretrained(gpt2), AutoModelForCausalLM.from_pretrained(gpt2)
    network.config.tie_word_embeddings = tied
    if not tied:
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.clone())
    network.save_pretrained("base")
    tokenizer.save_pretrained("base")
    tokenizer.add_tokens(["<ping>", "<pong>"], special_tokens=True)
    tokenizer.save_pretrained("longer")
    Path("data.jsonl").write_text('{"text": "<ping> the cat <pong>"}\n{"text": "<pong> the dog <ping>"}\n' * 20)
    outcome = lmtrain("clm", "--model", "base", "--tokenizer", "longer", "--data", "data.jsonl", *FLAGS, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "2 tokens were added to the tokenizer (<ping>, <pong>)" in outcome.err.replace("\n", " ")
    tables = [name for name in load_file("run/adapter_model.safetensors") if "trainable_tokens" in name]
    assert len(tables) == (1 if tied else 2)
    results = json.loads(Path("run/results.json").read_text())["metrics"]
    assert lmtrain("eval", "--model", "run", "--json").json["metrics"] == pytest.approx(results, rel=1e-5)
    assert lmtrain("merge", "run", "-o", "merged").code == 0
    assert AutoModelForCausalLM.from_pretrained("merged").get_input_embeddings().num_embeddings == len(tokenizer)
    scored = lmtrain("eval", "--model", "merged", "--data", "data.jsonl", "--json").json["metrics"]
    assert scored == pytest.approx(
        lmtrain("eval", "--model", "run", "--data", "data.jsonl", "--json").json["metrics"], rel=1e-5
    )


def test_added_tokens_get_embeddings_without_lora(gpt2: Path, material: Path):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.add_tokens(["<ping>"])
    tokenizer.save_pretrained("longer")
    flags = ["--tokenizer", "longer", "--max-steps", 1, "-o", "run"]
    trained("clm", "--model", gpt2, "--data", material / "text.jsonl", *flags)
    assert AutoModelForCausalLM.from_pretrained("run").get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-r", 4], "--lora-r: only with --lora"),
        (["--dora"], "--dora: only with --lora"),
        (["--lora", "--lora-targets", "c_atn"], "did you mean c_attn?"),
        (["--lora", "--load-in-4bit"], "--load-in-4bit: needs"),
    ],
)
def test_conflicting_lora_flags_are_refused(flags: list, message: str, gpt2: Path, material: Path):
    outcome = lmtrain("clm", "--model", gpt2, "--data", material / "text.jsonl", *flags, "-o", "run")
    assert outcome.code == 2 and message in outcome.err.replace("\n", " "), outcome.err
    assert not Path("run").exists()


def test_lora_from_scratch_is_refused(material: Path):
    outcome = lmtrain(
        "clm", "--model", "gpt2", "--from-scratch", "--tokenizer", "char", "--lora", "--data", material / "text.jsonl"
    )
    assert outcome.code == 2 and "--lora: adapts a trained model" in outcome.err


def test_merge_refuses_other_models_and_overwrites_nothing(gpt2: Path, material: Path):
    assert lmtrain("merge", gpt2, "-o", "merged").code == 3
    trained("clm", "--model", gpt2, "--data", material / "text.jsonl", *FLAGS, "-o", "run")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert lmtrain("merge", "run", "-o", "full").code == 2
    assert Path("full/mine.txt").read_text() == "mine"
    adapter = Path("run/adapter_model.safetensors")
    adapter.write_bytes(adapter.read_bytes()[:-100])
    outcome = lmtrain("merge", "run", "-o", "merged")
    assert outcome.code == 3 and len(outcome.err.splitlines()) <= 4
    assert not Path("merged").exists()
