"""Gates: exit codes, the JUnit file and the job summary."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Outcome, lmtrain, scratch


@pytest.fixture
def trained_metrics(gpt2: Path) -> dict:
    return json.loads((gpt2 / "results.json").read_text())["metrics"]


def gated(model: Path, *flags) -> Outcome:
    return lmtrain("eval", "--model", model, "--json", "--quiet", *flags)


def test_failed_gate_exits_with_4_and_prints_all_results(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("before\n")
    outcome = gated(gpt2, "--assert", "perplexity<1", "--assert", "eval_loss > 0", "--junit", "report.xml")
    assert outcome.code == 4
    assert "gate failed: perplexity<1 (got " in outcome.err
    gates = outcome.json["gates"]
    assert [(gate["expression"], gate["holds"]) for gate in gates] == [
        ("perplexity<1", False),
        ("eval_loss > 0", True),
    ]
    assert gates[0]["value"] == outcome.json["metrics"]["perplexity"]
    suite = ElementTree.parse("report.xml").getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == [
        "perplexity<1"
    ]
    summary = Path("summary.md").read_text()
    assert summary.startswith("before\n") and "| perplexity |" in summary and "| ❌ | `perplexity<1` |" in summary


def test_passing_gates_exit_with_0(gpt2: Path, trained_metrics: dict):
    loss = trained_metrics["eval_loss"]
    comparisons = [
        f"eval_loss<{loss + 1}",
        f"eval_loss<={loss!r}",
        f"eval_loss>{loss - 1}",
        f"eval_loss>={loss!r}",
        f"eval_loss=={loss!r}",
        "eval_loss!=1e-3",
        "data.eval.rows_used>=1",
    ]
    outcome = gated(gpt2, *(part for expression in comparisons for part in ("--assert", expression)))
    assert outcome.code == 0 and all(gate["holds"] for gate in outcome.json["gates"])


@pytest.mark.parametrize(
    "expression",
    [
        '__import__("os")',
        "perplexity",
        "perplexity<",
        "<3",
        "perplexity<x",
        "perplexity<1;2",
        "1<perplexity",
        "a<1 or 1<2",
        "perplexity=1",
        "perplexity<nan",
        "",
    ],
)
def test_malformed_assertion_is_refused(expression: str, gpt2: Path):
    outcome = gated(gpt2, "--assert", expression)
    assert outcome.code == 2 and "write it as NAME<NUMBER" in outcome.err and not outcome.out


def test_unknown_metric_in_an_assertion_lists_the_known_ones(gpt2: Path):
    outcome = gated(gpt2, "--assert", "perplexty<25")
    assert outcome.code == 2
    assert "eval_loss, perplexity, bits_per_byte, token_accuracy; did you mean 'perplexity'?" in outcome.err
    outcome = gated(gpt2, "--assert", "train.steps<3")
    assert outcome.code == 2 and "there is no metric 'train.steps'" in outcome.err


@pytest.mark.parametrize(
    ("model", "changes", "share", "code"),
    [
        ("gpt2", {}, "1%", 0),
        ("gpt2", {"perplexity": 0.98}, "1%", 4),
        ("gpt2", {"perplexity": 0.98}, "3%", 0),
        ("gpt2", {"perplexity": 0.98}, "0.03", 0),
        ("gpt2", {"perplexity": 1.5, "eval_loss": 1.5}, "0", 0),
        ("bert", {"masked_accuracy_top5": 1.1}, "1%", 4),
        ("bert", {"masked_accuracy_top5": 0.9}, "1%", 0),
        ("t5", {"ter": 0.9}, "1%", 4),
        ("t5", {"ter": 1.1, "chrf": 0.5}, "0%", 0),
    ],
)
def test_regression_exits_with_4_and_improvement_with_0(
    model: str, changes: dict, share: str, code: int, request: pytest.FixtureRequest
):
    folder = request.getfixturevalue(model)
    before = json.loads((folder / "results.json").read_text())
    before["metrics"] |= {name: before["metrics"][name] * factor for name, factor in changes.items()}
    Path("baseline.json").write_text(json.dumps(before))
    outcome = gated(folder, "--baseline", "baseline.json", "--max-regression", share)
    assert outcome.code == code, outcome.err
    broken = {gate["expression"].split("<")[0].split(">")[0] for gate in outcome.json["gates"] if not gate["holds"]}
    assert broken == (set(changes) if code else set())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not JSON: "),
        ("", "not JSON: "),
        ("[1]", "contains no metrics"),
        ('{"metrics": {}}', "contains no metrics"),
        ('{"metrics": {"x": 1}}', "contains none of the metrics"),
        ('{"objective": "mlm", "metrics": {"eval_loss": 1}}', "metrics of mlm, but the objective is clm"),
    ],
)
def test_unusable_baseline_exits_with_3(content: str | None, message: str, gpt2: Path):
    if content is not None:
        Path("baseline.json").write_text(content)
    outcome = gated(gpt2, "--baseline", "baseline.json")
    assert outcome.code == 3 and message in outcome.err


def test_training_records_its_gates_and_saves_the_model(material: Path):
    recipe = """
task: clm
model: gpt2
from_scratch: true
model_config: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}
tokenizer: bpe:300
data: DATA
max_steps: 2
gates:
- perplexity<1
- train.last_loss<1e6
"""
    Path("recipe.yaml").write_text(recipe.replace("DATA", str(material / "text.jsonl")))
    outcome = lmtrain("run", "recipe.yaml", "-o", "run", "--json", "--quiet")
    assert outcome.code == 4
    assert [gate["holds"] for gate in outcome.json["gates"]] == [False, True]
    assert json.loads(Path("run/results.json").read_text()) == outcome.json
    assert Path("run/model.safetensors").exists()
    again = lmtrain("run", "run/recipe.yaml", "-o", "again", "--json", "--quiet", "--assert", "perplexity<1e9")
    assert again.code == 0, "the command line replaces the gates of the recipe"


def test_gates_are_checked_before_training(material: Path):
    flags = ["clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run"]
    for more in (["--assert", "blue>3"], ["--assert", "bleu>3"], ["--junit", "no/where.xml"]):
        assert lmtrain(*flags, *more).code == 2
    assert lmtrain(*flags, "--baseline", "nothing.json").code == 3
    outcome = lmtrain(*flags, "--val-split", 0, "--assert", "perplexity<9")
    assert outcome.code == 2 and "--assert perplexity<9: needs evaluation data" in outcome.err
    assert not Path("run").exists()


def test_run_folder_is_a_valid_baseline(gpt2: Path):
    shutil.copytree(gpt2, "before")
    assert gated(gpt2, "--baseline", "before").code == 0


def test_gates_are_checked_again_on_a_completed_run(material: Path):
    run = [
        "clm",
        *scratch("gpt2"),
        "-d",
        material / "text.jsonl",
        "-o",
        "run",
        "--max-steps",
        2,
        "--resume",
        "auto",
        "-q",
    ]
    assert lmtrain(*run, "--json").code == 0
    again = lmtrain(*run, "--json", "--assert", "perplexity<1")
    assert again.code == 4 and again.json["gates"][0]["holds"] is False


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("t5", ["--metric", "rouge1", "--assert", "bleu>0"], "no metric 'bleu'"),
        ("bert", ["--assert", "pseudo_perplexity<9"], "no metric 'pseudo_perplexity'"),
    ],
)
def test_gate_on_a_metric_that_is_not_computed_is_refused(
    model: str, flags: list[str], message: str, request: pytest.FixtureRequest
):
    outcome = lmtrain("eval", "--model", request.getfixturevalue(model), *flags)
    assert outcome.code == 2 and message in outcome.err
