"""Named evaluation sets: `--eval-data dev=a.jsonl --eval-data test-ko=b.jsonl`."""

import json
from pathlib import Path

import pytest
from conftest import lmtrain, scratch, sentences, trained

TEXT_METRICS = ("--metric", "bleu", "--metric", "chrf")


def pairs(name: str, start: int, stop: int) -> str:
    rows = [{"source": line, "target": line.split()[-1] + " " + line} for line in sentences(stop)[start:]]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture
def sets() -> tuple[str, ...]:
    """Flags that name the sets dev (two files) and test-ko."""
    named = {"dev": pairs("a.jsonl", 60, 66), "test-ko": pairs("b.jsonl", 66, 78)}
    return (
        *(f"--eval-data={name}={path}" for name, path in named.items()),
        f"--eval-data=dev={pairs('c.jsonl', 78, 81)}",
    )


def without_sets(metrics: dict, name: str) -> dict:
    return {key.removeprefix(f"{name}."): value for key, value in metrics.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize(("objective", "model"), [("clm", "gpt2"), ("mlm", "bert"), ("seq2seq", "t5")])
def test_each_set_has_the_figures_of_its_files_alone(objective: str, model: str, sets: tuple[str, ...]):
    columns = () if objective == "seq2seq" else ("--text-column", "target", "--no-packing")
    texts = TEXT_METRICS if objective == "seq2seq" else ()
    pairs("train.jsonl", 0, 60)
    flags = (*columns, *texts, "--max-steps", 4, "--samples", 1)
    done = trained(objective, *scratch(model), "--data", "train.jsonl", *sets, *flags, "-o", "run")
    for name, files in {"dev": ["a.jsonl", "c.jsonl"], "test-ko": ["b.jsonl"]}.items():
        data = [part for file in files for part in ("--data", file)]
        alone = trained("eval", "--model", "run", *data, *columns, *texts)
        assert without_sets(done["metrics"], name) == pytest.approx(alone["metrics"], rel=1e-6), name
        assert without_sets(done["signatures"], name) == alone["signatures"]
        for metric, interval in without_sets(done["intervals"], name).items():
            assert interval == pytest.approx(alone["intervals"][metric], rel=1e-6)
        assert done["data"]["evaluation_sets"][name]["rows_used"] == alone["data"]["eval"]["rows_used"]
    plain = {name: value for name, value in done["metrics"].items() if "." not in name}
    assert plain == without_sets(done["metrics"], "dev"), "plain names are those of the first set"
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert [sample["set"] for sample in samples] == ["dev", "test-ko"]


def test_eval_repeats_the_figures_of_the_sets(sets: tuple[str, ...]):
    pairs("train.jsonl", 0, 60)
    done = trained(
        "seq2seq", *scratch("t5"), "--data", "train.jsonl", *sets, *TEXT_METRICS, "--max-steps", 2, "-o", "run"
    )
    again = trained("eval", "--model", "run", "--predictions", "again.jsonl")
    named = trained("eval", "--model", "run", *(flag.replace("--eval-data", "--data") for flag in sets), *TEXT_METRICS)
    for other in (again, named):
        assert (other["metrics"], other["intervals"]) == (done["metrics"], done["intervals"])
    rows = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
    assert [(row["set"], row["row"]) for row in rows if row["set"] == "dev"] == [("dev", n) for n in range(9)]
    assert len(rows) == 21
    same = trained("eval", "--model", "run", "--against", "again.jsonl")["against"]
    assert (
        same["test-ko.bleu"]["difference"] == 0 and same["dev.eval_loss"]["value"] == done["metrics"]["dev.eval_loss"]
    )


def test_the_best_model_is_that_of_the_named_set(sets: tuple[str, ...]):
    pairs("train.jsonl", 0, 60)
    rows = [{"source": line, "target": "QZX 0123456789 !?"} for line in sentences(8)]
    Path("contrary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--metric", "chrf", "--eval-every", 4, "--max-steps", 40, "--learning-rate", 0.05)
    run = ("seq2seq", *scratch("t5"), "--data", "train.jsonl", *sets, "--eval-data", "contrary=contrary.jsonl", *flags)
    best = {}
    for name in ("dev", "contrary"):
        metric = f"{name}.eval_loss"
        done = trained(*run, *(("--best-metric", metric) if name != "dev" else ()), "-o", name)
        lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        found = {line["step"]: line[metric] for line in lines if "eval_loss" in line and line["step"]}
        best[name] = min(found, key=found.__getitem__)
        assert done["metrics"][metric] == found[best[name]]
    assert best["dev"] != best["contrary"]


def test_a_run_with_a_best_metric_of_a_set_is_scored_on_other_data(sets: tuple[str, ...]):
    pairs("train.jsonl", 0, 60)
    run = ("seq2seq", *scratch("t5"), "--data", "train.jsonl", *sets, "--metric", "chrf", "--max-steps", 1)
    gate = ("--assert", "initial_metrics.test-ko.eval_loss>0")
    trained(*run, "--best-metric", "test-ko.chrf", *gate, "-o", "run")
    assert "chrf" in trained("eval", "--model", "run", "--data", "b.jsonl")["metrics"]
    trained("eval", "--model", "run", "--predictions", "run.jsonl")
    against = ("--against", "run.jsonl", "--assert", "against.test-ko.chrf.difference>=0")
    assert trained("eval", "--model", "run", *against)["gates"][0]["holds"]


def test_gates_name_the_set(sets: tuple[str, ...]):
    pairs("train.jsonl", 0, 60)
    run = ("seq2seq", *scratch("t5"), "--data", "train.jsonl", *sets, *TEXT_METRICS, "--max-steps", 1)
    gates = ("--assert", "test-ko.bleu>=0", "--assert", "dev.perplexity<1")
    outcome = lmtrain(*run, *gates, "-o", "run", "--quiet")
    assert outcome.code == 4
    assert "gate failed: dev.perplexity<1 (got " in outcome.err
    assert "test-ko.bleu>=0 (got" not in outcome.err
    outcome = lmtrain(*run, "--assert", "test-kr.bleu>20", "-o", "other")
    assert outcome.code == 2
    assert "did you mean 'test-ko.bleu'" in outcome.err
    baseline = lmtrain("eval", "--model", "run", "--baseline", "run", "--max-regression", 0, "--json")
    assert baseline.code == 0, baseline.err
    checked = [gate["expression"] for gate in baseline.json["gates"]]
    assert [name.split(">=")[0] for name in checked if "bleu" in name] == ["dev.bleu", "test-ko.bleu"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--eval-data", "dev=a.jsonl", "--eval-data", "b.jsonl"), "give every evaluation set a name"),
        (("--eval-data", "train=a.jsonl"), "train is a part of the results"),
        (("--eval-data", "dev=a.jsonl", "--best-metric", "test.eval_loss"), "the evaluation sets are dev"),
        (
            (
                "--best-metric",
                "dev.eval_loss",
            ),
            "the evaluation sets have no names",
        ),
        (("--eval-data", "dev=none.jsonl"), "none.jsonl: no such file"),
        (("--data", "more=a.jsonl"), "only evaluation data are named"),
    ],
)
def test_names_that_cannot_be(flags: tuple[str, ...], message: str):
    pairs("a.jsonl", 0, 20)
    pairs("b.jsonl", 20, 30)
    outcome = lmtrain("seq2seq", *scratch("t5"), "--data", "a.jsonl", *flags, "--max-steps", 1)
    assert outcome.code in (2, 3), outcome.err
    assert message in " ".join(outcome.err.split())


def test_a_path_with_an_equals_sign_is_a_path():
    Path("lang=ko").mkdir()
    pairs("a.jsonl", 0, 20)
    pairs("lang=ko/b.jsonl", 20, 30)
    run = ("seq2seq", *scratch("t5"), "--data", "a.jsonl", "--metric", "chrf", "--max-steps", 1)
    for number, value in enumerate(("lang=ko/b.jsonl", "lang=ko/*.jsonl", "lang=ko", "lang=ko/b.jsonl#5")):
        done = trained(*run, "--eval-data", value, "-o", f"run{number}")
        assert not any("." in name for name in done["metrics"])
        assert done["data"]["eval"]["rows_used"] == (5 if "#" in value else 10)
    assert trained(*run, "--eval-data", "a.jsonl", "--data", "lang=ko/b.jsonl#5", "-o", "run9")


def test_compare_tests_each_set(sets: tuple[str, ...]):
    pairs("train.jsonl", 0, 60)
    run = ("seq2seq", *scratch("t5"), "--data", "train.jsonl", *sets, "--metric", "chrf")
    for name, steps in (("short", 1), ("long", 12)):
        trained(*run, "--max-steps", steps, "-o", name)
    outcome = lmtrain("compare", "short", "long", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["ranking_metric"] == "dev.eval_loss"
    tested = {pair["metric"]: pair for pair in outcome.json["pairs"]}
    assert {"dev.eval_loss", "dev.chrf", "test-ko.eval_loss", "test-ko.chrf"} <= set(tested)
    assert "eval_loss" not in tested, "the first set would be tested twice"
    predictions = ("--predictions", "short.jsonl")
    trained("eval", "--model", "short", "--data", "b.jsonl", "--metric", "chrf", *predictions)
    alone = trained("eval", "--model", "long", "--data", "b.jsonl", "--metric", "chrf", "--against", "short.jsonl")
    assert tested["test-ko.eval_loss"]["difference"] == pytest.approx(-alone["against"]["eval_loss"]["difference"])
    assert tested["test-ko.eval_loss"]["p"] == pytest.approx(alone["against"]["eval_loss"]["p_value"], abs=0.002)
