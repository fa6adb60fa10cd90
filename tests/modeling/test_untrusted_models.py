"""Untrusted model folders are refused in one line, before they run code, fill memory or open a connection."""

import json
import pickle
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch


class Canary:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(gpt2: Path, tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gpt2 / name, target / name)
    return target


def changed(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(), protocol=2))


def code_of_its_own(folder: Path) -> None:
    changed(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("from pathlib import Path\nPath('canary').touch()\n")


def shards(name: Any) -> Any:
    def write(folder: Path) -> None:
        (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"transformer.wte.weight": name}})
        )

    return write


def weights(content: bytes) -> Any:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def header(document: Any) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text


HOSTILE = {
    "pickle": (only_a_pickle, "a pickle, which can run code when loaded"),
    "remote code": (code_of_its_own, "only with --trust-remote-code"),
    "shard outside": (shards("../outside.safetensors"), "which is not a file in this folder"),
    "shard absolute": (shards("/etc/passwd"), "which is not a file in this folder"),
    "shard number": (shards(7), "which is not a file in this folder"),
    "kernel of the hub": (lambda f: changed(f, attn_implementation="org/kernel"), "is code from the Hub"),
    "layers": (lambda f: changed(f, n_layer=10**9), "layers are too many"),
    "width": (lambda f: changed(f, n_embd=10**7), "needs more than"),
    "vocabulary": (lambda f: changed(f, vocab_size=10**13), "needs more than"),
    "positions": (lambda f: changed(f, n_positions=10**13), "needs more than"),
    "header of 2^60": (weights((1 << 60).to_bytes(8, "little") + b"{}"), "cut off"),
    "header no JSON": (weights(header(b"{{{{")), "its header is damaged"),
    "header a list": (weights(header([1, 2])), "its header is damaged"),
    "offsets beyond": (weights(header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})), "cut off"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder_is_refused_in_one_line(name: str, folder: Path, material: Path):
    make, wanted = HOSTILE[name]
    make(folder)
    began = time.monotonic()
    outcome = lmtrain("clm", "--model", folder, "-d", material / "text.jsonl", "-o", "run", "--max-steps", 1)
    assert outcome.code == 3, outcome.err
    assert wanted in outcome.err.replace("\n", " ")
    assert len([line for line in outcome.err.splitlines() if line.startswith("lmtrain:")]) == 1
    assert not Path("canary").exists()
    assert not Path("run").exists()
    assert time.monotonic() - began < 10


def test_allow_pickle_reads_weights_alone(folder: Path, material: Path):
    only_a_pickle(folder)
    outcome = lmtrain("clm", "--model", folder, "--allow-pickle", "-d", material / "text.jsonl", "-o", "run")
    assert outcome.code == 3
    assert not Path("canary").exists()


def test_allow_pickle_reads_a_pickle_of_weights(folder: Path, material: Path):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    outcome = lmtrain("clm", "--model", folder, "--allow-pickle", "-d", material / "text.jsonl", "--max-steps", 0)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("flag", ["trust_remote_code", "allow_pickle"])
def test_code_runs_only_if_the_command_line_allows_it(flag: str, material: Path, monkeypatch: pytest.MonkeyPatch):
    data = material / "text.jsonl"
    Path("r.yaml").write_text(f"objective: clm\nmodel: {{name: org/x, {flag}: true}}\ndata: {data}\n")
    for outcome in (
        lmtrain("run", "r.yaml"),
        lmtrain("clm", "-m", "org/x", "-d", data, "--set", f"model.{flag}=true"),
    ):
        assert outcome.code == 2
        assert "as a flag on the command line" in outcome.err.replace("\n", " ")
    dry = lmtrain("clm", "-m", "org/x", "-d", data, f"--{flag.replace('_', '-')}", "--dry-run")
    assert dry.code == 0
    assert flag not in dry.out
    monkeypatch.setenv(f"LMTRAIN_{flag.upper()}", "true")
    assert lmtrain("clm", "-m", "org/x", "-d", data).code == 2


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3,
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    ],
)
def test_chat_template_neither_escapes_nor_runs_forever(template: str, folder: Path, material: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    began = time.monotonic()
    outcome = lmtrain("clm", "--model", folder, "-d", material / "chats.jsonl", "-o", "run", "--max-steps", 1)
    assert outcome.code == 3, outcome.err
    assert not Path("canary").exists()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("sizes", ["n_layer=1000000000", "n_embd=10000000", "vocab_size=10000000000000"])
def test_absurd_sizes_are_refused_before_allocation(sizes: str, material: Path):
    model = [*scratch("gpt2")[:3], "--model-config", sizes, "--tokenizer", "byte"]
    outcome = lmtrain("clm", *model, "-d", material / "text.jsonl", "-o", "run")
    assert outcome.code == 3
    assert "--model-config: " in outcome.err


@pytest.mark.parametrize(("flag", "value"), [("-o", "a\0b"), ("-o", "a\nb"), ("--model", "a\0b"), ("--data", "a\0b")])
def test_impossible_file_names_are_refused(flag: str, value: str, material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", material / "text.jsonl", flag, value)
    assert outcome.code in (2, 3)
    assert outcome.err.count("\n") <= 2
