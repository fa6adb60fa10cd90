"""`lmtrain eval`: models, adapters, user errors."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import lmtrain, scratch
from eval_helpers import SHARE_METRIC, evaluated
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # what peft asks of transformers
def test_adapter_scores_like_its_merged_model(gpt2: Path, material: Path):
    from peft import LoraConfig, get_peft_model

    network = AutoModelForCausalLM.from_pretrained(gpt2)
    torch.manual_seed(0)
    adapted = get_peft_model(
        network, LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    adapted.save_pretrained("adapter")
    data = material / "text.jsonl"
    outcome = lmtrain("eval", "--model", "adapter", "--data", data, "--json")
    assert outcome.code == 0, outcome.err
    assert f"the adapter adapter is merged into {gpt2}" in outcome.err
    AutoTokenizer.from_pretrained(gpt2).save_pretrained("merged")
    adapted.merge_and_unload().save_pretrained("merged")
    merged = evaluated("--model", "merged", "--data", data)["metrics"]
    assert outcome.json["metrics"] == pytest.approx(merged, rel=1e-6)
    assert merged["eval_loss"] != pytest.approx(
        evaluated("--model", gpt2, "--data", data)["metrics"]["eval_loss"], rel=1e-5
    )
    (Path("adapter") / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in lmtrain("eval", "--model", "adapter", "--data", data).err


def test_adapter_without_a_usable_base_is_refused(gpt2: Path, tmp_path: Path):
    Path("ad").mkdir()
    for base, message in (
        ("/nonexist/base", "no such folder"),
        (str(Path("ad").resolve()), "the base of this adapter is an adapter"),
        ("org/base", "offline there is no such model"),
    ):
        Path("ad/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        outcome = lmtrain("eval", "--model", "ad", "--data", "x.jsonl")
        assert outcome.code == 3 and message in outcome.err, outcome.err


def test_model_without_a_recipe_is_scored_on_the_named_data(gpt2: Path, material: Path, tmp_path: Path):
    model = Path(shutil.copytree(gpt2, tmp_path / "model"))
    (model / "recipe.yaml").unlink()
    data = material / "text.jsonl"
    assert evaluated("-m", model, "-d", data)["metrics"] == evaluated("-m", gpt2, "--eval-data", data)["metrics"]


def test_eval_and_generate_open_no_connection(t5: Path, bert: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    Path("share.py").write_text(SHARE_METRIC)
    korean = [{"source": "hello", "target": "안녕하세요 여러분"}, {"source": "the dog", "target": "그 개는 아주 크다"}]
    Path("ko.jsonl").write_text("".join(json.dumps(row) + "\n" for row in korean))
    evaluated("--model", t5, "--data", "ko.jsonl", "--metric", "share.py")
    evaluated("--model", t5, "--data", "ko.jsonl", "--num-beams", 2)
    evaluated("--model", bert, "--pseudo-perplexity")
    evaluated("--model", gpt2, "--stride", 16, "-L", 32)
    for model, prompt in ((gpt2, "the"), (bert, "the [MASK]"), (t5, "the dog")):
        assert lmtrain("generate", "--model", model, "--prompt", prompt).code == 0


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--data", "text"], 2, "--model is missing"),
        (["--model", "gpt2!"], 3, "no such folder"),
        (["--model", "RUN", "--objective", "cml"], 2, "clm, mlm, seq2seq or classify"),
        (["--model", "RUN", "--objective", "mlm", "--data", "x.jsonl"], 3, "use lmtrain clm"),
        (["--model", "RUN", "--num-beams", "3"], 2, "--num-beams: not an option of clm"),
        (["--model", "RUN", "--stride", "128"], 2, "--stride 128: has to be less than --max-length 128"),
        (["--model", "RUN", "--against", "nothing.jsonl"], 3, "nothing.jsonl: No such file"),
        (["--model", "RUN", "--predictions", "no/where"], 2, "no such folder"),
        (["--model", "RUN", "--bleu-tokenize", "13a"], 2, "not an option of clm"),
        (["--model", "MODEL"], 2, "--data is missing"),
    ],
)
def test_user_errors_are_one_sentence(flags: list[str], code: int, message: str, gpt2: Path, tmp_path: Path):
    model = Path(shutil.copytree(gpt2, tmp_path / "model"))
    (model / "recipe.yaml").unlink()
    Path("x.jsonl").write_text('{"text": "a"}\n')
    outcome = lmtrain("eval", *({"RUN": str(gpt2), "MODEL": str(model)}.get(flag, flag) for flag in flags))
    assert outcome.code == code, outcome.err
    assert message in outcome.err and "Traceback" not in outcome.err


def test_user_errors_do_not_import_torch():
    script = "import sys; from lmtrain.cli.app import app\n"
    script += "sys.argv = ['lmtrain', 'eval', '--model', 'x', '--assert', 'a', '--data', 'd']\n"
    script += "try: app()\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True
    )
    assert printed.stdout.split() == ["2", "False"]


def test_seed_that_would_score_training_rows_is_refused(gpt2: Path):
    outcome = lmtrain("eval", "--model", gpt2, "--seed", 7)
    assert outcome.code == 2 and "give evaluation rows with --data" in outcome.err
    assert lmtrain("eval", "--model", gpt2, "--seed", 42).code == 0


def test_best_metric_that_is_not_computed_is_refused(material: Path):
    flags = ["-o", "run", "--max-steps", 1]
    for command in (
        ["seq2seq", *scratch("t5"), "-d", material / "pairs.jsonl", "--metric", "rouge1", "--best-metric", "bleu"],
        ["mlm", *scratch("bert"), "-d", material / "text.jsonl", "--best-metric", "pseudo_perplexity"],
        ["clm", *scratch("gpt2"), "-d", material / "chats.jsonl", "--best-metric", "bits_per_byte"],
    ):
        outcome = lmtrain(*command, *flags)
        assert outcome.code == 2 and "--best-metric" in outcome.err and not Path("run").exists()
