"""Gates: exit codes, the JUnit file and the job summary."""

import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import Outcome, lmtrain, scratch, trained

from lmtrain.config import trackers
from lmtrain.config.eval import Gates
from lmtrain.config.resolution import load_recipe
from lmtrain.errors import BrokenDown, UsageError
from lmtrain.evaluation import figures, gates


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
        "perplexity<inf",
        "perplexity<1e999",
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
    assert outcome.code == 2 and "the results will have no 'train.steps'" in outcome.err


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
        ("gpt2", {"perplexity": 0.5}, "150%", 0),
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


# --- what never passes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "share"),
    [("5%", 0.05), ("0.05", 0.05), (0.05, 0.05), (0, 0), ("0%", 0), ("100%", 1), ("150%", 1.5), (" 2 %", 0.02)],
)
def test_share_of_a_regression_is_below_1_or_a_percentage(value: Any, share: float):
    section = Gates(max_regression=value)
    assert section.max_regression == pytest.approx(share)
    assert Gates(**section.model_dump(mode="json")) == section, "a saved recipe is read again"


@pytest.mark.parametrize("value", ["5", 5, 5.0, "1", 1, "1e3", "nan", "inf", "-1%", -0.1, "five", "", "%"])
def test_other_shares_of_a_regression_are_refused(value: Any):
    outcome = lmtrain("clm", "--model", "gpt2", "--data", "x", "--set", f"gates.max_regression={value}", "--dry-run")
    assert outcome.code == 2 and "--max-regression" in outcome.err


@pytest.mark.parametrize("operator", gates.OPERATORS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "5", True, [1]])
def test_only_a_finite_number_passes_an_assertion(operator: str, value: Any):
    section = Gates(assertions=[f"bleu{operator}1", f"train.last_loss{operator}1"])
    results = {"metrics": {"bleu": value}, "train": {"last_loss": value}}
    judged = gates.judge(section, results, None, [])
    assert [(gate.holds, gate.value) for gate in judged] == [(False, None)] * 2
    assert all(gate.reason for gate in judged)


@pytest.mark.parametrize(
    ("now", "before", "holds"),
    [
        (10.0, 10.0, True),
        (math.nan, 10.0, False),
        (None, 10.0, False),
        (10.0, None, False),
        (10.0, math.nan, False),
        (math.inf, 10.0, False),
        (-math.inf, 10.0, False),
        (10.0, math.inf, False),
    ],
)
def test_only_finite_numbers_pass_a_baseline(now: Any, before: Any, holds: bool):
    section = Gates(baseline="before.json")
    (gate,) = gates.judge(section, {"metrics": {"perplexity": now}}, {"metrics": {"perplexity": before}}, [])
    assert gate.holds is holds and bool(gate.reason) is not holds


def test_baseline_without_a_common_metric_fails():
    (gate,) = gates.judge(Gates(baseline="b"), {"metrics": {"bleu": 1.0}}, {"metrics": {"perplexity": 1.0}}, [])
    assert not gate.holds and "none of the metrics bleu" in str(gate.reason)


# --- the baseline ----------------------------------------------------------------------------------------------------

SIGNATURE = "max_length:64|tokenizer:ab12|precision:fp32|version:lmtrain-0.1.0"


@pytest.mark.parametrize(
    ("signature", "fingerprint", "allowed", "refused"),
    [
        (SIGNATURE, "f", [], None),
        (SIGNATURE.replace("0.1.0", "9.9.9"), "f", [], None),
        (SIGNATURE, "other", [], "other evaluation data"),
        (SIGNATURE, "other", ["data.eval"], None),
        (SIGNATURE.replace("ab12", "cd34"), "f", [], "another tokenizer"),
        (SIGNATURE.replace("ab12", "cd34"), "f", ["model.tokenizer"], None),
        (SIGNATURE.replace("64", "32"), "f", [], "max_length 64, here it is 32"),
        (SIGNATURE.replace("64", "32"), "f", ["max-length"], None),
        (SIGNATURE.replace("64", "32"), "f", ["data.eval"], "max_length 64, here it is 32"),
        (SIGNATURE.replace("fp32", "bf16"), "f", [], "precision fp32, here it is bf16"),
        (SIGNATURE + "|stride:16", "f", [], "stride unset, here it is 16"),
        ("frozen|mean of tokens", "f", [], "max_length"),
    ],
)
def test_baseline_of_other_data_or_settings_does_not_pass(
    signature: str, fingerprint: str, allowed: list[str], refused: str | None
):
    def results(signature: str, fingerprint: str) -> dict:
        data = {"eval": {"fingerprint": fingerprint}}
        return {"metrics": {"perplexity": 5.0}, "signatures": {"perplexity": signature}, "data": data}

    before, now = results(SIGNATURE, "f"), results(signature, fingerprint)
    (gate,) = gates.judge(Gates(baseline="before.json"), now, before, allowed)
    assert gate.holds is (refused is None)
    assert (refused or "") in (gate.reason or "")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--data", "other.jsonl"], "data.eval"),
        (["-L", 64], "max_length"),
        (["--stride", 16], "stride"),
    ],
)
def test_evaluation_against_another_baseline_is_refused_by_name(
    flags: list[Any], name: str, gpt2: Path, monkeypatch: pytest.MonkeyPatch
):
    Path("other.jsonl").write_text('{"text": "the dog sees the cat"}\n' * 3)
    outcome = gated(gpt2, "--baseline", gpt2, *flags, "--junit", "report.xml")
    assert outcome.code == 3 and f"--allow-drift {name}" in outcome.err.replace("\n", " ")
    assert 'errors="1"' in Path("report.xml").read_text()
    allowed = gated(gpt2, "--baseline", gpt2, *flags, "--allow-drift", name, "--max-regression", "900%")
    assert allowed.code == 0, allowed.err
    assert "warning: --baseline" in allowed.err


def test_run_that_trains_on_other_evaluation_data_is_refused_before_training(gpt2: Path, material: Path):
    flags = ["clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run", "--max-steps", 1]
    outcome = lmtrain(*flags, "--baseline", gpt2)  # which held out another share
    assert outcome.code == 3 and "made with other evaluation data" in outcome.err and not Path("run").exists()


def test_hand_written_baseline_is_compared_with_a_warning(gpt2: Path):
    Path("before.json").write_text('{"metrics": {"perplexity": 1e9, "bleu": 3}}')
    outcome = gated(gpt2, "--baseline", "before.json")
    assert outcome.code == 0 and [gate["expression"] for gate in outcome.json["gates"]] == ["perplexity<=1010000000"]
    message = " ".join(outcome.err.split())
    assert "does not say on which data" in message and "not compared: eval_loss" in message and "bleu" in message


def test_allow_drift_needs_a_baseline_in_eval(gpt2: Path):
    outcome = gated(gpt2, "--allow-drift", "data.eval")
    assert outcome.code == 2 and "only with --baseline" in outcome.err


# --- what is refused before the work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "bert", "t5"])
def test_figures_are_the_numbers_of_the_results(model: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(model)
    recipe = load_recipe(folder / "recipe.yaml")
    numbers = set(numbers_of(json.loads((folder / "results.json").read_text())))
    assert set(figures.of_training(recipe)) <= numbers
    assert {path for path in numbers if path.startswith(("train.", "data."))} <= set(figures.of_training(recipe))
    scored = set(numbers_of(gated(folder).json))
    assert set(figures.of_evaluation(recipe, against=False)) <= scored


def numbers_of(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in numbers_of(inner, f"{path}.{key}".lstrip("."))]
    return [path] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--assert", "train.lost_loss<2"], "did you mean 'train.last_loss'"),
        (["--assert", "train_loss<2"], "no metric 'train_loss'"),
        (["--assert", "eval_perplexity<9"], "did you mean 'perplexity'"),
        (["--assert", "train.last_loss<2", "--max-steps", 0], "no 'train.last_loss'"),
        (["--assert", "data.eval.rows_used>3", "--val-split", 0], "no 'data.eval.rows_used'"),
        (["--assert", "environment.torch>2"], "no 'environment.torch'"),
        (["--assert", "metrics.bleu>2"], "no metric 'bleu'"),
        (["--best-metric", "bleu"], "--best-metric bleu"),
        (["--best-metric", "perplexity", "--val-split", 0], "--best-metric perplexity: needs evaluation data"),
    ],
)
def test_figure_that_a_run_cannot_give_is_refused_before_training(flags: list[Any], message: str, material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run", "--max-steps", 1, *flags)
    assert outcome.code == 2 and message in " ".join(outcome.err.split()), outcome.err
    assert not Path("run").exists()


def test_bits_per_byte_of_chats_is_refused_before_training(material: Path):
    flags = ["clm", *scratch("gpt2"), "-d", material / "chats.jsonl", "-o", "run", "--max-steps", 1]
    outcome = lmtrain(*flags, "--assert", "bits_per_byte<9")
    assert outcome.code == 2 and "not computed for messages rows" in " ".join(outcome.err.split())
    assert not Path("run").exists()


@pytest.mark.parametrize("name", trackers.LIBRARIES)
def test_tracker_that_is_not_installed_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=f"--report-to {name}: .* is not installed"):
        trackers.check_trackers(["none", name])
    monkeypatch.setattr(trackers, "find_spec", lambda module: module)
    trackers.check_trackers(["all", "none", "another", name])


# --- reports ---------------------------------------------------------------------------------------------------------


def test_run_that_fails_writes_its_gates_as_errors(material: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.training import run

    def fail(*_: Any) -> None:
        raise BrokenDown("the loss of step 3 is not a finite number \x1b[31m")

    monkeypatch.setattr(run, "train", fail)
    flags = ["clm", *scratch("gpt2"), "-d", material / "text.jsonl", "-o", "run", "--junit", "report.xml"]
    assert lmtrain(*flags, "--assert", "perplexity<1", "--assert", "train.steps>2").code == 6
    suite = ElementTree.parse("report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "2")
    assert all("step 3" in str(error.get("message")) for error in suite.iter("error"))
    assert lmtrain(*flags).code == 6
    assert [case.get("name") for case in ElementTree.parse("report.xml").getroot()] == ["the run"]


def test_summary_page_that_cannot_be_written_is_a_warning(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "missing/summary.md")
    outcome = gated(gpt2, "--assert", "perplexity>0")
    assert outcome.code == 0 and outcome.json["metrics"]
    assert "missing/summary.md: No such file" in outcome.err


def test_table_names_a_failed_gate_as_the_message_does(gpt2: Path):
    outcome = lmtrain("eval", "--model", gpt2, "--assert", "perplexity<1", "--assert", "perplexity>0")
    assert outcome.code == 4
    assert "gate failed" in outcome.out and "holds" in outcome.out and "does not hold" not in outcome.out


def test_results_without_the_figure_after_training_fail_the_gate(material: Path, monkeypatch: pytest.MonkeyPatch):
    """A metric of `evaluate` may return other names than the assertion expects, which shows only at the end."""
    from eval_helpers import SHARE_METRIC

    Path("share.py").write_text(SHARE_METRIC)
    flags = ["seq2seq", *scratch("t5"), "-d", material / "pairs.jsonl", "-o", "run", "--max-steps", 1]
    outcome = lmtrain(*flags, "--metric", "share.py", "--assert", "sahre>0", "--json", "-q", "--junit", "r.xml")
    assert outcome.code == 4 and "the results have no sahre" in outcome.err
    assert outcome.json["gates"] == [
        {"expression": "sahre>0", "value": None, "holds": False, "reason": "the results have no sahre"}
    ]
    assert 'errors="1"' in Path("r.xml").read_text()


def test_percentage_of_a_recipe_survives_saving(material: Path):
    flags = ["clm", *scratch("gpt2"), "-d", material / "text.jsonl", "--max-steps", 1, "--max-regression", "150%"]
    trained(*flags, "-o", "run")
    assert load_recipe("run/recipe.yaml").gates.max_regression == 1.5
