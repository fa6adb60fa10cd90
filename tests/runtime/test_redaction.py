"""Secrets reach neither the terminal nor the run folder, however a command ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch

from lmtrain.runtime.redaction import is_secret_name, redact

ENVIRONMENT = {
    "HF_TOKEN": "hf_QWERTYuiopASDFghjklZXCVbnm01",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYPLANTED",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED12",
    "MY_SERVICE_PASSWORD": "correct-horse-battery",
}
NETRC = "netrc-planted-password-77"
TYPED = {
    "user": "user:pa55word-planted@",
    "query": "planted-query-token-9",
    "hub": "hf_PlantedPlantedPlantedPlanted22",
    "openai": "sk-proj-plantedplantedplanted1234",
    "github": "ghp_plantedplantedplantedplanted12345678",
    "slack": "xoxb-planted-planted-1234567890",
}
CANARIES = [*ENVIRONMENT.values(), NETRC, *TYPED.values()]


@pytest.fixture(autouse=True)
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine example.org login me password {NETRC}\n")


def rows() -> Path:
    """Text that contains secrets."""
    address = {TYPED["user"]: "https://{}example.org", TYPED["query"]: "https://example.org/?token={}"}
    left = [address.get(value, "{}").format(value) for value in CANARIES * 3]
    texts = [f"the cat sees {value} and the dog {number}" for number, value in enumerate(left)]
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Path("rows.jsonl")


def found(*texts: str) -> list[str]:
    everything = [text.encode() for text in texts]
    everything += [
        path.read_bytes() for folder in ("run", "runs") for path in Path(folder).rglob("*") if path.is_file()
    ]
    return [canary for canary in CANARIES if any(canary.encode() in content for content in everything)]


def command(*flags: Any) -> list[Any]:
    # The vocabulary of a byte tokenizer does not contain text.
    return [
        "clm",
        *scratch("gpt2")[:5],
        "--tokenizer",
        "byte",
        "-d",
        rows(),
        "-o",
        "run",
        "--max-steps",
        1,
        "--val-split",
        0.3,
        "--no-packing",
        *flags,
    ]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_run_on_text_with_secrets_prints_and_saves_none(flags: list[str]):
    outcome = lmtrain(*command(*flags))
    assert outcome.code == 0, outcome.err
    assert found(outcome.out, outcome.err) == []
    assert "the cat sees" in Path("run/samples.jsonl").read_text() + Path("run/predictions.jsonl").read_text()


def test_nonfinite_loss_names_rows_without_secrets(monkeypatch: pytest.MonkeyPatch):
    from lmtrain.training.trainer import ExactTrainer

    whole = ExactTrainer.compute_loss
    monkeypatch.setattr(ExactTrainer, "compute_loss", lambda *a, **k: whole(*a, **k) * float("nan"))
    outcome = lmtrain(*command())
    assert outcome.code == 6
    assert "the cat sees" in outcome.err
    assert found(outcome.out, outcome.err) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", f"https://{TYPED['user']}example.org/data.jsonl"],
        ["--data", f"https://example.org/data.jsonl?token={TYPED['query']}"],
        ["--data", f"nothing/{TYPED['openai']}.jsonl"],
        ["--model", f"org/{TYPED['hub']}"],
        ["--report-to", TYPED["openai"]],
        ["--model-config", f"n_layer={TYPED['github']}"],
        ["--set", f"train.hub_token={TYPED['hub']}"],
        ["--set", f"train.api_key={TYPED['query']}"],
        ["--set", f"password={TYPED['query']}"],
        ["--set", f"train.optim={TYPED['slack']}"],
    ],
)
def test_error_message_hides_the_secret_in_a_flag(flags: list[str]):
    outcome = lmtrain(*command(*flags))
    assert outcome.code in (2, 3), outcome.err
    assert found(outcome.out, outcome.err) == []


def test_recipe_with_secret_keys_is_refused(material: Path):
    Path("bad.yaml").write_text(
        f"objective: clm\nmodel: gpt2\ndata: {material / 'text.jsonl'}\n"
        f"api_key: {TYPED['query']}\ntrain:\n  password: {TYPED['query']}\n"
    )
    outcome = lmtrain("run", "bad.yaml")
    assert outcome.code == 2
    assert "api_key: a secret has no place in a recipe" in outcome.err.replace("\n", " ")
    assert "train.password: a secret" in outcome.err.replace("\n", " ")
    assert found(outcome.out, outcome.err) == []


def test_dry_run_prints_no_secrets(material: Path):
    outcome = lmtrain(*command("--data", f"x/{TYPED['github']}", "--set", f"train.run_id={TYPED['hub']}"))
    dry = lmtrain(*command("--data", f"x/{TYPED['github']}", "--dry-run"))
    assert (outcome.code, dry.code) == (2, 0)
    assert found(outcome.out, outcome.err, dry.out, dry.err) == []


def test_traceback_contains_no_secrets():
    """An unexpected error, in another process."""
    code = (
        "import sys; from lmtrain.cli import app; from lmtrain.config import shipped\n"
        f"def fail(*_): raise KeyError('{TYPED['hub']} in https://{TYPED['user']}x')\n"
        "sys.argv = ['lmtrain', 'recipes']; shipped.shipped = fail; app.app()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert found(done.stdout, done.stderr.partition("KeyError: ")[2]) == []


@pytest.mark.parametrize(
    "name", ["api_key", "hub_token", "WANDB_API_KEY", "password", "secret", "access-key", "apiKey"]
)
def test_secret_names_are_recognized(name: str):
    assert is_secret_name(name)
    assert "s3cr3tv4lue123456" not in redact(f"{name}=s3cr3tv4lue123456")


@pytest.mark.parametrize(
    "text",
    [
        "use_cls_token: True",
        "num_memory_tokens=16",
        "pad_token='<pad>'",
        "max_new_tokens=128",
        "eos_token: </s>",
        "token_accuracy 0.5",
        "tokenizer: bpe:8000",
        "tokens per second 12,345",
        "--tokenizer bpe:300",
        "key: value",
        "the token: of his love",
    ],
)
def test_ordinary_text_is_unchanged(text: str):
    assert redact(text) == text
