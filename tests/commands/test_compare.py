"""`lmtrain compare` and `lmtrain runs`."""

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import lmtrain, scratch, trained

SIGNATURE = "max_length:64|tokenizer:1234abcd|precision:fp32"


def saved(name: str, losses: list[float], tokens: int = 10, data: str = "a" * 64, **settings: object) -> str:
    """A run folder whose rows have these mean losses over `tokens` tokens each."""
    folder = Path(name)
    folder.mkdir()
    rows = [
        {"source": f"row {n}", "references": [f"row {n}"], "prediction": "", "nll": loss * tokens, "tokens": tokens}
        for n, loss in enumerate(losses)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_results(folder, {"eval_loss": sum(losses) / len(losses)}, data, settings)
    return name


def write_results(folder: Path, metrics: dict[str, float], data: str, settings: dict[str, object]) -> None:
    document = {
        "objective": "clm",
        "model": "gpt2",
        "status": "completed",
        "metrics": metrics,
        "signatures": dict.fromkeys(metrics, SIGNATURE),
        "data": {"eval": {"fingerprint": data}},
        "settings": settings,
    }
    (folder / "results.json").write_text(json.dumps(document))


def compared(*runs: str, code: int = 0) -> dict:
    outcome = lmtrain("compare", *runs, "--json")
    assert outcome.code == code, outcome.err
    return outcome.json


def independent_p_value(a: list[float], b: list[float], resamples: int) -> float:
    """Paired bootstrap of the difference of two means, written plainly."""
    draws = np.random.default_rng(12345)
    observed = np.mean(a) - np.mean(b)
    differences = []
    for _ in range(resamples):
        rows = draws.choice(len(a), size=len(a), replace=True)
        differences.append(np.mean(np.array(a)[rows]) - np.mean(np.array(b)[rows]))
    centre = np.mean(differences)
    return (sum(abs(d - centre) >= abs(observed) for d in differences) + 1) / (resamples + 1)


def independent_holm(p_values: list[float]) -> list[float]:
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def test_p_values_equal_an_independent_computation(tmp_path: Path):
    draw = random.Random(3)
    base = [draw.gauss(3, 1) for _ in range(120)]
    losses = {
        "first": base,
        "second": [x + draw.gauss(0.05, 0.3) for x in base],
        "third": [x + draw.gauss(0.2, 0.3) for x in base],
    }
    document = compared(*(saved(name, rows) for name, rows in losses.items()))
    expected = [independent_p_value(losses[a], losses[b], 1000) for a, b in combinations(losses, 2)]
    assert [pair["p"] for pair in document["pairs"]] == pytest.approx(expected)
    assert [pair["p_adjusted"] for pair in document["pairs"]] == pytest.approx(independent_holm(expected))
    for pair in document["pairs"]:
        assert pair["difference"] == pytest.approx(np.mean(losses[pair["a"]]) - np.mean(losses[pair["b"]]))
        assert pair["significant"] == (pair["p_adjusted"] < 0.05)
    assert document["ranking"] == ["first", "second", "third"]
    assert document == compared("first", "second", "third")


def test_runs_of_the_same_quality_rarely_differ(tmp_path: Path):
    from lmtrain.commands.compare import compare
    from lmtrain.runs.saved_run import read_run
    from lmtrain.runtime.console import Silent

    draw, found = random.Random(11), 0
    for number in range(200):
        base = [draw.gauss(3, 1) for _ in range(80)]
        pair = [saved(f"{number}-{side}", [x + draw.gauss(0, 0.5) for x in base]) for side in "ab"]
        document = compare([read_run(path) for path in pair], [], Silent())
        found += any(test["significant"] for test in document["pairs"])
    assert found <= 0.05 * 200 + 5  # 10 are expected; more than 15 have a probability of 4 %


def test_a_run_never_differs_from_itself(tmp_path: Path):
    losses = [random.Random(1).gauss(3, 1) for _ in range(50)]
    [pair] = compared(saved("first", losses), saved("second", losses))["pairs"]
    assert pair["p"] == 1 and not pair["significant"] and pair["interval"] == [0, 0]


def test_runs_on_other_data_are_not_ranked(tmp_path: Path):
    document = compared(saved("first", [1.0, 2.0]), saved("second", [1.0, 2.0], data="b" * 64))
    assert not document["comparable"] and document["ranking"] is None and document["pairs"] == []
    assert document["reason"] == "first and second were scored on different evaluation data"
    assert "not comparable" in lmtrain("compare", "first", "second").out


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path):
    for name in ("first", "second"):
        saved(name, [1.0, 2.0, 4.0])
        results = json.loads(Path(name, "results.json").read_text())
        results["metrics"]["token_accuracy"] = None
        Path(name, "results.json").write_text(json.dumps(results))
    assert [pair["metric"] for pair in compared("first", "second")["pairs"]] == ["eval_loss"]


def test_a_run_without_metrics_is_not_comparable_and_says_why(tmp_path: Path):
    saved("first", [1.0, 2.0]), saved("second", [1.0, 2.0])
    results = json.loads(Path("second/results.json").read_text())
    Path("second/results.json").write_text(json.dumps({**results, "metrics": {}, "status": "interrupted"}))
    document = compared("first", "second")
    assert not document["comparable"] and document["reason"] == "there is no metric that all runs have"


def test_what_differs_in_the_settings_is_shown(tmp_path: Path):
    more = {"train.epochs": 3, "data.train": ["a.txt"]}
    document = compared(
        saved("first", [1.0, 2.0], **{"train.learning_rate": 1e-4}, **more),
        saved("second", [1.0, 2.0], **{"train.learning_rate": 3e-4}, **more),
    )
    assert document["differing_settings"] == {"train.learning_rate": [1e-4, 3e-4]}
    markdown = lmtrain("compare", "first", "second", "--markdown").out
    assert "| train.learning_rate | 0.0001 | 0.0003 |" in markdown and "- A: `first`" in markdown


def test_predictions_of_other_results_are_not_tested(tmp_path: Path):
    saved("first", [1.0, 2.0]), saved("second", [1.0, 3.0])
    results = json.loads(Path("second/results.json").read_text())
    results["metrics"]["eval_loss"] = 1.5
    Path("second/results.json").write_text(json.dumps(results))
    outcome = lmtrain("compare", "first", "second", "--json")
    assert outcome.json["pairs"] == [] and "gives another eval_loss than the results of second" in outcome.err


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["first"], 2, "needs two runs"),
        (["first", "first"], 2, "named twice"),
        (["first", "missing"], 3, "missing: No such file"),
        (["first", "first/predictions.jsonl"], 3, "not JSON"),
        (["first", "second", "--metric", "eval_los"], 2, "did you mean 'eval_loss'?"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: list[str], code: int, message: str):
    saved("first", [1.0, 2.0]), saved("second", [1.0, 3.0])
    outcome = lmtrain("compare", *arguments)
    assert outcome.code == code and message in " ".join(outcome.err.split())


SOURCES = [f"the {a} {b} finds the {c} near a {d} house" for a in ("red", "old", "big", "new", "sad")
           for b in ("cat", "dog", "fox", "man", "owl") for c in ("key", "cup", "box", "hat") for d in ("low", "tall")]  # fmt: skip


def translated(name: str, wrong: int, seed: int) -> float:
    """A run of seq2seq with some wrong words; returns its BLEU by sacrebleu."""
    import sacrebleu

    folder, draw = Path(name), random.Random(seed)
    folder.mkdir()
    outputs = [text.split() for text in SOURCES]
    for number in draw.sample(range(len(outputs)), wrong):
        outputs[number][draw.randrange(8)] = "word"
    texts = [" ".join(words) for words in outputs]
    rows = [
        {"source": text, "references": [text], "prediction": output, "nll": 10.0, "tokens": 10}
        for text, output in zip(SOURCES, texts, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bleu = sacrebleu.corpus_bleu(texts, [SOURCES]).score
    write_results(folder, {"eval_loss": 1.0, "bleu": bleu}, "a" * 64, {})
    return bleu


def test_a_planted_difference_in_bleu_is_found(tmp_path: Path):
    better, worse = translated("better", 20, 1), translated("worse", 32, 2)
    assert 1.5 < better - worse < 4
    document = compared("better", "worse", "--metric", "bleu")
    [pair] = document["pairs"]
    assert pair["significant"] and pair["difference"] == pytest.approx(better - worse)
    assert "A is better than B in bleu" in lmtrain("compare", "better", "worse").out


@pytest.mark.slow
def test_trained_runs_are_compared_and_listed(material: Path):
    for name, rate in (("slow", 1e-5), ("fast", 1e-2)):
        trained("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--val-split", 0.2, "-L", 32,
                "--max-steps", 6, "--lr", rate, "-o", f"runs/{name}")  # fmt: skip
    document = compared("runs/slow", "runs/fast")
    assert document["ranking"] == ["runs/fast", "runs/slow"]
    assert any(pair["significant"] for pair in document["pairs"])
    assert document["differing_settings"] == {"train.learning_rate": [1e-5, 1e-2]}

    lmtrain("compare", "runs/slow", "runs/fast", "--html", "page.html")
    page = Path("page.html").read_text()
    assert page.count("<figure>") >= 3 and page.count("<polyline") >= 6 and "<script" not in page
    assert "B is better than A in eval_loss" in page

    listed = lmtrain("runs", "--sort", "eval_loss", "--json").json
    assert [run["path"] for run in listed] == ["runs/slow", "runs/fast"]
    assert all(run["status"] == "completed" and run["objective"] == "clm" and run["bytes"] > 1000 for run in listed)
    limit = (listed[0]["metrics"]["eval_loss"] + listed[1]["metrics"]["eval_loss"]) / 2
    [best] = lmtrain("runs", "--where", f"eval_loss<{limit}", "--json").json
    assert best["path"] == "runs/fast"
    assert lmtrain("runs", "--status", "failed", "--json").json == []
    assert lmtrain("runs", "nowhere").code == 3
