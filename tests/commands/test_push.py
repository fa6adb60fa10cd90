"""`lmtrain push` against a stand-in for the Hub on this machine."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch, trained

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's own client

SECRET = "hf_" + "a1B2" * 8


class Hub:
    """What was asked of the hub, and the files that it has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        """LFS objects by their sha256."""
        self.uploads = 0
        self.fails_after: int | None = None
        """Uploads after which the hub answers 503."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "name": "me", "type": "user"})

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                self._answer(*hub.post(self.path, self.rfile.read(size), f"http://127.0.0.1:{hub.port}"))

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if hub.fails_after is not None and hub.uploads >= hub.fails_after:
                    self._answer({"error": "busy"}, 500)
                    return
                hub.uploads += 1
                hub.stored[sha256(content).hexdigest()] = content
                self._answer({})

            def _answer(self, document: Any, status: int = 200) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, path: str, body: bytes, address: str) -> tuple[Any, int]:
        if path.endswith("/repos/create"):
            return {"url": f"{address}/me/model"}, 200
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            kind = {True: "lfs", False: "regular"}
            large = [(file["path"], file["path"].endswith(".safetensors")) for file in asked]
            return {"files": [{"path": p, "uploadMode": kind[lfs], "shouldIgnore": False} for p, lfs in large]}, 200
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for wanted in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{address}/put/{wanted['oid']}"}}
                missing = wanted["oid"] not in self.stored
                objects.append({**wanted, **({"actions": upload} if missing else {})})
            return {"transfer": "basic", "objects": objects}, 200
        if "/commit/" in path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    self.files[value["path"]] = self.stored[value["oid"]]
            url = f"{address}/me/model/commit/{'0' * 40}"
            return {"commitOid": "0" * 40, "commitUrl": url, "pullRequestUrl": None}, 200
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}, 200
        return {"error": f"unknown {path}"}, 404


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub
    from huggingface_hub import constants

    stand_in = Hub()
    address = f"http://127.0.0.1:{stand_in.port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.HfApi.__init__, "__defaults__", (address, SECRET, None, None, None, None))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def run(material: Path) -> Path:
    data = Path.cwd() / "private" / "text.jsonl"
    data.parent.mkdir()
    data.write_bytes((material / "text.jsonl").read_bytes())
    trained("clm", *scratch("gpt2"), "--data", data, "--val-split", 0.2, "--max-steps", 3, "-L", 32, "-o", "run")
    return Path("run")


def test_the_model_arrives_and_no_data_no_path_and_no_secret(run: Path, hub: Hub):
    outcome = lmtrain("push", run, "me/model", "--json")
    assert outcome.code == 0, outcome.err
    assert {"model.safetensors", "config.json", "README.md", "results.json", "recipe.yaml"} <= hub.files.keys()
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    for kept in ("predictions.jsonl", "samples.jsonl", "report.html", "checkpoints"):
        assert not any(kept in name for name in hub.files)
    here = str(Path.cwd())
    for name, content in hub.files.items():
        text = content.decode(errors="replace")
        assert here not in text and "/private/" not in text and SECRET not in text, name
        if not name.startswith("tokenizer") and name != "model.safetensors":
            assert not re.search(r"(?<![\w.:/])/(tmp|home|root|work)/", text), name
    assert json.loads(hub.files["results.json"])["settings"]["data.train"] == ["text.jsonl"]
    assert outcome.json["url"].startswith("http://127.0.0.1")


def test_rows_of_a_step_that_was_not_finite_stay_here(run: Path, hub: Hub):
    with (run / "metrics.jsonl").open("a") as log:
        log.write(
            json.dumps({"step": 3, "loss": None, "not_finite": "the loss", "rows": ["a secret row of the data"]})
            + "\n"
        )
    (run / "tokenizer.model").write_bytes(b"pieces")  # two patterns name it
    assert lmtrain("push", run, "me/model").code == 0
    assert b"secret row" not in hub.files["metrics.jsonl"] and b'"not_finite"' in hub.files["metrics.jsonl"]
    assert hub.files["tokenizer.model"] == b"pieces"


def test_a_push_that_was_cut_off_goes_on(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries of the hub's client
    hub.fails_after = 0
    outcome = lmtrain("push", run, "me/model")
    assert outcome.code == 7 and "the same command goes on" in " ".join(outcome.err.split())
    hub.fails_after = None
    assert lmtrain("push", run, "me/model").code == 0 and hub.uploads == 1
    assert lmtrain("push", run, "me/model").code == 0 and hub.uploads == 1  # nothing is sent twice


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["run", "model"], 2, "name the repository as org/name"),
        (["missing", "me/model"], 3, "missing: No such file"),
    ],
)
def test_what_cannot_be_pushed_is_refused(arguments: list[str], code: int, message: str):
    outcome = lmtrain("push", *arguments)
    assert outcome.code == code and message in " ".join(outcome.err.split())


def test_paths_are_shortened_and_other_text_stays():
    from lmtrain.commands.push import without_paths

    command = "lmtrain clm --data /home/me/a/text.jsonl --model org/name --assert 'loss</s>' -o 'x/y'"
    assert without_paths(command) == "lmtrain clm --data text.jsonl --model org/name --assert 'loss</s>' -o 'x/y'"
    assert without_paths("/home/Jane Doe/own/x.txt") == "x.txt" == without_paths("file:///home/u/x.txt")
    assert without_paths({"a": ["/data/x.csv", 3], "b": "https://h.co/a/b/c"}) == {
        "a": ["x.csv", 3],
        "b": "https://h.co/a/b/c",
    }
