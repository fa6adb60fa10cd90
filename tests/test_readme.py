"""What the README tells people to type."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import lmtrain, scratch, trained
from ruamel.yaml import YAML

from lmtrain import metrics
from lmtrain.config.options import leaves
from lmtrain.config.recipe import DECLARED, RECIPES
from lmtrain.data.ledger import Ledger

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
CI, METRICS, DATA = PAGES["ci"], PAGES["metrics"], PAGES["data"]
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README + PAGES["pretraining"], re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if not language]
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
TRAINING = [
    line[line.index("lmtrain ") :]
    for line in LINES
    if re.search(r"(^|&& |-m )lmtrain (clm|mlm|seq2seq|run) ", line) and "RUN/" not in line
]


def test_the_two_commands_are_there():
    assert "pip install . && lmtrain run clm-quickstart" in LINES
    assert "pip install -e '.[test]' && pytest" in LINES


@pytest.mark.parametrize("line", TRAINING)
def test_every_training_command_is_understood(line: str):
    outcome = lmtrain(*shlex.split(line)[1:], "--dry-run")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_named_exists(page: str):
    commands = ("clm", "mlm", "seq2seq", "eval", "generate", "merge", "probe", "compare", "runs", "sweep", "chat")
    shown = "".join(lmtrain(command, "--help").out for command in commands)
    shown += lmtrain("tokenizer", "train", "--help").out + lmtrain("preview", "clm", "--help").out
    shown += lmtrain("doctor", "--help").out + lmtrain("push", "--help").out + lmtrain("plan", "clm", "--help").out
    declared = {leaf for section in DECLARED for leaf in leaves(section)}
    known = set(re.findall(r"--[a-z][a-z-]+", shown)) | {
        no + name.replace("_", "-")
        for leaf in declared
        for name in (leaf.flag, *leaf.aliases)
        for no in ("--", "--no-")
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z]", PAGES[page])) - {
        "--gpus-per-node",
        "--ntasks-per-node",
        "--nproc-per-node",
        "--cpu",
        "--paired-bs",
        "--smoke",
        "--signal",
        "--requeue",
    }
    assert named <= known, named - known


def test_every_count_of_the_ledger_is_explained():
    assert [
        name for name in vars(Ledger()) if f"`{name}`" not in DATA and name not in ("rows_used", "tokens_used")
    ] == []


def test_every_metric_is_defined():
    names = {name for recipe in RECIPES.values() for name in recipe.model_fields["eval"].annotation.METRICS}
    names |= set(metrics.PROBE_METRICS)
    assert names == metrics.HIGHER_IS_BETTER | metrics.LOWER_IS_BETTER
    defined = set(re.findall(r"`([a-zA-Z0-9_]+)`", METRICS + PAGES["probe"] + PAGES["classification"]))
    assert names <= defined, names - defined


def test_the_job_trains_evaluates_and_fails_on_regression(monkeypatch: pytest.MonkeyPatch):
    """The commands of the example, with three steps instead of four hundred."""
    job = YAML(typ="safe").load(re.search(r"```yaml\n(.*?)```", CI, re.DOTALL)[1])["jobs"]["quality"]
    train, score = (
        shlex.split(step["run"])[1:] for step in job["steps"] if "lmtrain " in step.get("run", "") and "name" in step
    )
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    small = [
        "--model-config",
        "num_hidden_layers=1,hidden_size=32,num_attention_heads=2,intermediate_size=32,max_position_embeddings=64",
    ]
    train[train.index("--max-steps") + 1], train[train.index("--assert") + 1] = "3", "train.last_loss<9"
    assert lmtrain(*train, *small, "--data", "example:python-docs#300").code == 0
    score = [
        part.replace("bits_per_byte<3", "bits_per_byte<9").replace("#2000", "#50")
        for part in score[: score.index(">")]
    ]
    Path("baseline.json").write_text(json.dumps({"metrics": {"perplexity": 1e9}}))
    assert lmtrain(*score).code == 0
    Path("baseline.json").write_text(json.dumps({"metrics": {"perplexity": 1.0}}))
    outcome = lmtrain(*score)
    assert outcome.code == 4 and "gate failed: perplexity<=1.01 " in outcome.err
    assert Path("report.xml").exists() and Path("predictions.jsonl").exists()
    assert Path("summary.md").read_text().count("### lmtrain clm") == 3


def test_the_exit_codes_are_those_of_the_errors():
    from lmtrain import errors

    table = set(map(int, re.findall(r"^\| (\d+) \|", README, re.MULTILINE)))
    assert {e.exit_code for e in errors.LmtrainError.__subclasses__() if e is not errors.Interrupted} <= table


SAVED_RUNS = [line for line in LINES if re.match(r"lmtrain (runs|compare|plan [a-z]+-quickstart|sweep) ?", line)]


def test_there_are_commands_about_saved_runs():
    assert {line.split()[1] for line in SAVED_RUNS} == {"runs", "compare", "plan", "sweep"}


@pytest.mark.slow
def test_every_command_about_saved_runs_does_what_is_said(material: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.commands.sweep.sweep import Sweep

    swept: list[Sweep] = []
    monkeypatch.setattr(Sweep, "run", lambda self: swept.append(self) or {"metric": "x", "ranking": [], "trials": []})
    monkeypatch.setattr("lmtrain.cli.sweep._show", lambda *_: None)
    for name in "abc":
        trained("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--val-split", 0.2, "--max-steps", 2,
                "--seed", "7", "--lr", {"a": 1e-4, "b": 1e-3, "c": 1e-2}[name], "-o", f"runs/{name}")  # fmt: skip
    for line in SAVED_RUNS:
        words = shlex.split(re.split(r"\s{3,}", line)[0])[1:]
        outcome = lmtrain(*words)
        assert outcome.code == 0, outcome.err
        if words[0] in ("runs", "compare"):
            assert all(f"runs/{name}" in outcome.out for name in "ab")
        if words[0] == "plan":
            assert "peak memory" in outcome.out
    assert Path("page.html").is_file()
    assert swept[0].seeds == 3 and len(swept[0].points()) == 3
