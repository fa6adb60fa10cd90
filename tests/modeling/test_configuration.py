"""Configurations: from a hub that is near, silent or failing; and flags that contradict each other."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import lmtrain


@pytest.mark.parametrize(
    ("flags", "code", "wanted"),
    [
        ("gpt2 --model-config n_layer=2", 2, "needs --from-scratch"),
        ("gpt2 --from-scratch", 2, "--tokenizer bpe:8000"),
        ("gpt2 --tokenizer bpe:300", 2, "--from-scratch"),
        ("gpt2 --from-scratch --tokenizer bpe", 2, "write bpe:8000"),
        ("gpt2 --from-scratch --tokenizer bpe:20", 3, "bpe needs at least 260"),
        ("gpt2 --from-scratch --tokenizer bpe:300 --model-config n_layers=2", 2, "did you mean 'n_layer'"),
        ("gpt2 --from-scratch --tokenizer bpe:300 --model-config n_head=5", 3, "gpt2"),
        ("./nowhere", 3, "no such folder"),
    ],
)
def test_conflicting_model_flags_are_refused(flags: str, code: int, wanted: str, material: Path):
    outcome = lmtrain("clm", "--model", *flags.split(), "--data", material / "text.jsonl")
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
                    # The client gives up at once if it is asked to wait longer than its patience.
                    headers |= {"X-Error-Code": "RepoNotFound"} if code in (401, 404) else {"Retry-After": "60"}
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
    given = ["--model", "team/tiny", "--data", str(material / "text.jsonl"), "--max-steps", "1", "-o", output]
    command = [sys.executable, "-m", "lmtrain", "clm", *given, *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.mark.slow
def test_hub_model_is_downloaded_once_and_then_read_from_the_cache(hub: Hub, material: Path):
    first = from_hub(hub, material, "first")
    assert first.returncode == 0, first.stderr
    assert any("model.safetensors" in path for path in hub.asked)
    hub.asked.clear()
    again = from_hub(hub, material, "again", "--offline")
    assert again.returncode == 0, again.stderr
    assert hub.asked == []
    figures = [json.loads(Path(run, "results.json").read_text())["metrics"] for run in ("first", "again")]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (404, "no such model on the hub"),
        (401, "no such model on the hub"),
        (500, "the hub answers 500 and asks to wait 60 s"),
    ],
)
def test_hub_error_is_one_sentence(error: int, wanted: str, hub: Hub, material: Path):
    hub.error = error
    outcome = from_hub(hub, material, "run")
    assert outcome.returncode == 3, outcome.stderr
    assert wanted in outcome.stderr.replace("\n", " ")
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 3, outcome.stderr
    assert not Path("run").exists()


def test_uncached_model_offline_is_one_sentence(material: Path):
    outcome = lmtrain("clm", "--model", "team/never-seen", "--data", material / "text.jsonl")
    assert outcome.code == 3
    assert "team/never-seen: no such folder" in outcome.err.replace("\n", " ")
