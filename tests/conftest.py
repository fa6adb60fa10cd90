"""Fixtures: tiny data and tiny models, made without network."""

import os

# Before anything imports torch, or the hub's client, which read them once. More threads slow a tiny model down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
for variable in [name for name in os.environ if name.startswith("LMTRAIN_")]:
    del os.environ[variable]

import atexit
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, scratch
from typer.testing import CliRunner

__all__ = ["TINY", "scratch"]  # tests import them from here

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

HEAVY = ("torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "tokenizers", "numpy", "pyarrow")
"""Libraries that no command may import before it needs them."""

NOUNS = ("cat", "dog", "bird", "fish", "child", "king", "river", "tree")
VERBS = ("sees", "likes", "finds", "hears", "follows", "meets")


def sentences(count: int) -> list[str]:
    return [
        f"the {NOUNS[i % 8]} {VERBS[i % 6]} the {NOUNS[(i * 5 + i // 8) % 8]}" + (" again and again" if i % 3 else "")
        for i in range(count)
    ]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


def lmtrain(*arguments: Any) -> Outcome:
    """Run the command line in this process; an exception that is not ours is raised, as a traceback would be."""
    from lmtrain.cli.app import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="lmtrain")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def trained(*arguments: Any) -> dict[str, Any]:
    outcome = lmtrain(*arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


def imported_by(*arguments: str, also: str = "") -> set[str]:
    """The modules that are imported once the command line has run with these arguments, after `also`."""
    code = (
        f"import sys\nfrom lmtrain.cli.app import app\n{also}\n"
        f"try:\n    app({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n', *sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def outcome_of(run: Path | str, weights_file: str = "model.safetensors") -> tuple[str, list[tuple], dict[str, float]]:
    """(sha256 of the weights, every logged loss, the metrics) of a run."""
    folder = Path(run)
    weights = sha256((folder / weights_file).read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line.get("loss"), line.get("eval_loss"), line.get("grad_norm")) for line in lines]
    return weights, losses, json.loads((folder / "results.json").read_text())["metrics"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own, with a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def frozen_libraries() -> None:
    """Collecting garbage goes through all objects of the libraries, which takes longer than a small training."""
    if len(sys.modules) > frozen_libraries.modules + 100:
        gc.collect()
        gc.freeze()
        frozen_libraries.modules = len(sys.modules)


frozen_libraries.modules = 0


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text.jsonl, pairs.jsonl, prompts.jsonl, chats.jsonl, prose.txt."""
    folder = tmp_path_factory.mktemp("material")
    lines = sentences(60)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("text.jsonl", [{"text": line} for line in lines])
    write("pairs.jsonl", [{"source": line, "target": " ".join(reversed(line.split()))} for line in lines])
    write(
        "prompts.jsonl",
        [{"question": f"What of the {n}?", "answer": line} for n, line in zip(NOUNS * 8, lines, strict=False)],
    )
    write(
        "chats.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"Tell me of the {NOUNS[i % 8]}."},
                    {"role": "assistant", "content": line},
                    {"role": "user", "content": "Go on."},
                    {"role": "assistant", "content": lines[-i - 1]},
                ]
            }
            for i, line in enumerate(lines)
        ],
    )
    (folder / "prose.txt").write_text("\n".join(lines * 4) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def gpt2(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny GPT-2."""
    return _run("clm", "gpt2", material / "text.jsonl", tmp_path_factory)


@pytest.fixture(scope="session")
def bert(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run("mlm", "bert", material / "text.jsonl", tmp_path_factory)


@pytest.fixture(scope="session")
def t5(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run("seq2seq", "t5", material / "pairs.jsonl", tmp_path_factory)


def _run(objective: str, model: str, data: Path, factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("runs") / model
    trained(
        objective, *scratch(model), "--data", data, "-o", folder, "--max-steps", 4, "--val-split", 0.1, "--lr", 1e-3
    )
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of families."""
    reports = terminalreporter.getreports("passed")
    if lines := [value for report in reports for name, value in report.user_properties if name == "family"]:
        terminalreporter.section("families")
        for line in sorted(lines):
            terminalreporter.line(line)
