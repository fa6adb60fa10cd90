"""Loading: the objective guard, weights that are not all there, and a hub that is near, silent or cross."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import lmtrain, scratch, trained
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from lmtrain.config.architectures import made_for


@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt2", "clm"), ("llama", "clm"), ("qwen3", "clm"), ("opt", "clm"), ("gemma3_text", "clm"), ("bert", "mlm"),
     ("roberta", "mlm"), ("modernbert", "mlm"), ("deberta-v2", "mlm"), ("electra", "mlm"), ("t5", "seq2seq"),
     ("bart", "seq2seq"), ("marian", "seq2seq"), ("pegasus", "seq2seq"), ("prophetnet", "seq2seq"), ("vit", None)],
)  # fmt: skip
def test_a_model_type_is_known_to_be_made_for_one_objective(family: str, objective: str | None):
    assert made_for(family) == objective


def test_the_tables_read_from_the_source_are_those_of_transformers():
    from transformers.models.auto import modeling_auto

    from lmtrain.config.architectures import TABLES, _table

    for name, _ in TABLES.values():
        assert _table(name) == dict(getattr(modeling_auto, name))


@pytest.mark.parametrize(("wrong", "model", "right"), [("mlm", "gpt2", "clm"), ("clm", "bert", "mlm"), ("clm", "t5", "seq2seq"),
                                                       ("seq2seq", "gpt2", "clm")])  # fmt: skip
def test_the_wrong_objective_names_the_right_one(
    wrong: str, model: str, right: str, material: Path, request: pytest.FixtureRequest
):
    data = material / ("pairs.jsonl" if wrong == "seq2seq" else "text.jsonl")
    outcome = lmtrain(wrong, "--model", request.getfixturevalue(model), "--data", data)
    assert outcome.code == 3
    assert f"use lmtrain {right}" in outcome.err.replace("\n", " ")


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
def test_weights_that_do_not_fit_are_an_error(change, wanted: str, gpt2: Path, material: Path):
    outcome = train_on(damaged(gpt2, change), material)
    assert outcome.code == 3
    assert wanted in outcome.err.replace("\n", " ")
    assert not Path("run").exists()


@pytest.mark.parametrize("cut", [0, 100])
def test_weights_that_are_cut_off_are_an_error(cut: int, gpt2: Path, material: Path):
    shutil.copytree(gpt2, "cut", ignore=shutil.ignore_patterns("checkpoints"))
    os.truncate("cut/model.safetensors", cut)
    assert train_on(Path("cut"), material).code == 3


def test_a_pickle_is_never_read(gpt2: Path, material: Path):
    shutil.copytree(gpt2, "pickled", ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    Path("pickled/pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\nX\x0b\x00\x00\x00touch caught\x85R.")
    outcome = train_on(Path("pickled"), material)
    assert outcome.code == 3
    assert "pickle" in outcome.err
    assert not Path("caught").exists()


def test_code_that_comes_with_a_model_is_not_run_unasked(gpt2: Path, material: Path):
    shutil.copytree(gpt2, "remote", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads(Path("remote/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    Path("remote/config.json").write_text(json.dumps(config))
    Path("remote/evil.py").write_text("open('caught', 'w')\n")
    outcome = train_on(Path("remote"), material)
    assert outcome.code == 3
    assert "--trust-remote-code" in outcome.err
    assert not Path("caught").exists()


def test_a_new_head_is_announced(bert: Path, material: Path):
    shutil.copytree(bert, "encoder", ignore=shutil.ignore_patterns("checkpoints"))
    config = BertConfig.from_pretrained("encoder", architectures=["BertModel"])
    BertModel(config).save_pretrained("encoder")
    outcome = train_on(Path("encoder"), material, "mlm")
    assert outcome.code == 0
    assert "the head is new and starts at random: cls.predictions" in outcome.err


def test_half_precision_weights_are_trained_in_single_precision(gpt2: Path, material: Path):
    folder = damaged(gpt2, lambda weights: weights.update({k: w.bfloat16() for k, w in weights.items()}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert train_on(folder, material).code == 0
    assert {w.dtype for w in load_file("run/model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "code", "wanted"),
    [
        (["--model", "gpt2", "--model-config", "n_layer=2"], 2, "needs --from-scratch"),
        (["--model", "gpt2", "--from-scratch"], 2, "--tokenizer bpe:8000"),
        (["--model", "gpt2", "--tokenizer", "bpe:300"], 2, "--from-scratch"),
        (["--model", "gpt2", "--from-scratch", "--tokenizer", "bpe"], 2, "write bpe:8000"),
        (["--model", "gpt2", "--from-scratch", "--tokenizer", "bpe:20"], 3, "bpe needs 260"),
        (["--model", "gpt2", "--from-scratch", "--tokenizer", "bpe:300", "--model-config", "n_layers=2"], 2, "did you mean 'n_layer'"),
        (["--model", "gpt2", "--from-scratch", "--tokenizer", "bpe:300", "--model-config", "n_head=5"], 3, "gpt2"),
        (["--model", "./nowhere"], 3, "no such folder"),
    ],
)  # fmt: skip
def test_flags_of_the_model_that_do_not_go_together(flags: list[str], code: int, wanted: str, material: Path):
    outcome = lmtrain("clm", *flags, "--data", material / "text.jsonl")
    assert outcome.code == code, outcome.err
    assert wanted in outcome.err.replace("\n", " ")


# --- a hub on this machine -------------------------------------------------------------------------------------------


class Hub:
    """Enough of the hub's protocol to fetch one model: or to answer everything with one error."""

    def __init__(self, folder: Path):
        self.error: int | None = None
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                hub.asked.append(self.path)
                name = self.path.split("?")[0].partition("/resolve/")[2].partition("/")[2]
                file = folder / name
                headers = {"X-Repo-Commit": "c" * 40, "ETag": f'"{name}"'}
                body = b""
                if hub.error:
                    code = hub.error
                    headers |= {"X-Error-Code": "RepoNotFound"} if code in (401, 404) else {}
                elif "/tree/" in self.path:
                    code, body = 200, b"[]"
                elif self.path.startswith("/api/models/"):
                    code, body = 200, json.dumps({"sha": "c" * 40, "siblings": [], "id": "team/tiny"}).encode()
                elif name and file.is_file():
                    code, body = 200, file.read_bytes()
                else:
                    code, headers = 404, headers | {"X-Error-Code": "EntryNotFound"}
                self.send_response(code)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(gpt2: Path) -> Iterator[Hub]:
    hub = Hub(gpt2)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def from_hub(hub: Hub, material: Path, output: str, *flags: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("cache").absolute()), "HF_HUB_DISABLE_XET": "1"}
    command = [
        "clm",
        "--model",
        "team/tiny",
        "--data",
        material / "text.jsonl",
        "--max-steps",
        "1",
        "-o",
        output,
        *flags,
    ]
    return subprocess.run([sys.executable, "-m", "lmtrain", *map(str, command)], capture_output=True, text=True,
                          env=environment, check=False, timeout=120)  # fmt: skip


def test_a_hub_model_is_fetched_once_and_then_read_from_the_cache(hub: Hub, material: Path):
    first = from_hub(hub, material, "first")
    assert first.returncode == 0, first.stderr
    assert any("model.safetensors" in path for path in hub.asked)
    hub.asked.clear()
    again = from_hub(hub, material, "again", "--offline")
    assert again.returncode == 0, again.stderr
    assert hub.asked == []
    figures = [json.loads(Path(run, "results.json").read_text())["metrics"] for run in ("first", "again")]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("error", "wanted"), [(404, "no such model on the hub"), (401, "no such model on the hub"), (500, "500")]
)
def test_a_hub_that_refuses_is_one_sentence(error: int, wanted: str, hub: Hub, material: Path):
    hub.error = error
    outcome = from_hub(hub, material, "run")
    assert outcome.returncode == 3, outcome.stderr
    assert wanted in outcome.stderr.replace("\n", " ")
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 3, outcome.stderr
    assert not Path("run").exists()


def test_a_model_that_is_not_in_the_cache_is_one_sentence_offline(material: Path):
    outcome = lmtrain("clm", "--model", "team/never-seen", "--data", material / "text.jsonl")
    assert outcome.code == 3
    assert "team/never-seen: no such folder" in outcome.err.replace("\n", " ")


def test_from_scratch_takes_the_sizes_and_the_vocabulary(material: Path):
    trained("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 0, "-o", "run")
    config = json.loads(Path("run/config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["vocab_size"]) == (2, 32, 300)
    assert config["eos_token_id"] == 3


def test_a_folder_with_a_bare_vocabulary_is_a_tokenizer(material: Path, bert: Path):
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(bert)
    Path("vocabulary").mkdir()
    Path("vocabulary/vocab.txt").write_text("\n".join(made.convert_ids_to_tokens(range(len(made)))), encoding="utf-8")
    Path("undeclared").mkdir()
    shutil.copy(bert / "tokenizer.json", "undeclared")
    for folder in ("vocabulary", "undeclared"):
        outcome = lmtrain("mlm", *scratch("bert")[:5], "--tokenizer", folder, "--data", material / "text.jsonl", "--max-steps", 1,
                          "-o", f"run-{folder}")  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert AutoTokenizer.from_pretrained(f"run-{folder}").mask_token == "[MASK]"
    assert "declares no mask_token" in outcome.err.replace("\n", " ")


@pytest.mark.parametrize("name", ["transfo-xl", "xlm-prophetnet"])
def test_what_transformers_no_longer_ships_is_said_by_name(name: str, material: Path):
    objective = "clm" if name == "transfo-xl" else "seq2seq"
    data = material / ("text.jsonl" if objective == "clm" else "pairs.jsonl")
    outcome = lmtrain(objective, "--model", name, "--from-scratch", "--tokenizer", "char", "--data", data)
    assert outcome.code == 3 and f"{name}: transformers 5 no longer ships" in outcome.err.replace("\n", " ")
    Path("old").mkdir()
    Path("old/config.json").write_text(json.dumps({"model_type": name}))
    outcome = lmtrain(objective, "--model", "old", "--data", data)
    assert outcome.code == 3 and "no longer ships" in outcome.err.replace("\n", " ")
