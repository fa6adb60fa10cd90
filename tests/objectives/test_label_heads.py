"""`lmtrain classify` with other heads: a number for a text, several labels at once, the answer to a question in a text."""

import json
import random
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lmtrain, outcome_of, scratch, trained
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from test_classification import FILLER, answered, read, reviews, write
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

MODEL = (*scratch("bert"), "--learning-rate", 3e-3, "--batch-size", 16, "--val-split", 0.25)
GROUPS = {"sport": ("ball", "goal"), "food": ("rice", "soup"), "music": ("song", "drum")}
NAMES = ("anna", "peter", "maria", "john")


def numbers(name: str, count: int = 160) -> str:
    """The number is how often a word occurs, and half of it."""
    draw, rows = random.Random(1), []
    for _ in range(count):
        words = [draw.choice((*FILLER, "good", "good", "good")) for _ in range(8)]
        rows.append({"text": " ".join(words), "label": 1.5 * words.count("good")})
    return write(name, rows)


def topics(name: str, count: int = 160) -> str:
    draw, rows = random.Random(1), []
    for _ in range(count):
        labels = [label for label in GROUPS if draw.random() < 0.4]
        words = [draw.choice(FILLER) for _ in range(4)] + [draw.choice(GROUPS[label]) for label in labels]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "labels": labels})
    return write(name, rows)


def questions(name: str, count: int = 120, without: float = 0.0, filler: int = 10) -> str:
    """Who did it? The name in the text, of which there is one or, for a share of the questions, none."""
    draw, rows = random.Random(1), []
    for _ in range(count):
        words = [draw.choice(FILLER) for _ in range(filler)]
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if draw.random() >= without:
            at = draw.randrange(filler)
            words[at] = draw.choice(NAMES)
            start = len(" ".join(words[:at])) + (at > 0)
            answers = {"text": [words[at], f"{words[at]} "], "answer_start": [start, start]}
        rows.append({"question": "who did it?", "context": " ".join([*words, "end"]), "answers": answers})
    return write(name, rows)


def plain(text: str) -> list[str]:
    """The words of an answer as Rajpurkar et al. 2016 compare them: small letters, no punctuation, no articles."""
    letters = "".join(character if character.isalnum() or character.isspace() else "" for character in text.lower())
    return [word for word in letters.split() if word not in ("a", "an", "the")]


def compute_exact(answer: str, given: str) -> float:
    return float(plain(answer) == plain(given))


def compute_f1(answer: str, given: str) -> float:
    left, common = plain(answer), 0
    for word in plain(given):
        if word in left:
            left.remove(word)
            common += 1
    total = len(plain(answer)) + len(plain(given))
    return 2 * common / total if plain(answer) and plain(given) else compute_exact(answer, given)


# --- a number for a text ---------------------------------------------------------------------------------------------
def test_numbers_are_learnt_and_correlations_are_those_of_scipy():
    data = numbers("rows.jsonl")
    results = trained(
        "classify", *MODEL, "--data", data, "--problem-type", "regression", "--max-steps", 60, "-o", "run"
    )
    records = read("run/predictions.jsonl")
    true, given = ([record[name] for record in records] for name in ("references", "prediction"))
    true = [row[0] for row in true]
    found = results["metrics"]
    assert found["pearson"] > 0.5
    assert found["pearson"] == pytest.approx(pearsonr(true, given).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(spearmanr(true, given).statistic, abs=1e-9)
    assert found["eval_loss"] == pytest.approx(np.mean((np.array(true) - np.array(given)) ** 2), rel=1e-6)
    model = AutoModelForSequenceClassification.from_pretrained("run").eval()
    tokenizer = AutoTokenizer.from_pretrained("run")
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    for record in records[:5]:
        with torch.no_grad():
            estimate = model(**tokenizer(record["source"], return_tensors="pt")).logits[0, 0]
        assert float(estimate) == pytest.approx(record["prediction"], abs=1e-5)
    answer = answered("--model", "run", "--prompt", records[0]["source"])[0]
    assert answer["number"] == pytest.approx(records[0]["prediction"], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "more"),
    [(numbers, ("--problem-type", "regression")), (topics, ()), (questions, ("-L", 32, "--doc-stride", 4))],
)
def test_the_loss_of_a_step_is_that_of_transformers_however_the_step_is_divided(make: Any, more: tuple):
    data = ("classify", *scratch("bert"), "--data", make("rows.jsonl"), "--val-split", 0.25, *more)
    once = ("--model-config", "hidden_dropout_prob=0,attention_probs_dropout_prob=0", "--lr", 1e-3, "--max-steps", 2)
    losses = []
    for rows, steps in ((8, 1), (4, 2), (1, 8)):
        name = f"run-{rows}"
        trained(*data, *once, "--log-every", 1, "--batch-size", rows, "--grad-accum", steps, "-o", name)
        losses.append([line["loss"] for line in read(f"{name}/metrics.jsonl") if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "more"),
    [(numbers, ("--problem-type", "regression")), (topics, ()), (questions, ("-L", 32, "--doc-stride", 4))],
)
def test_a_paused_run_goes_on_bit_for_bit(make: Any, more: tuple):
    flags = (
        "classify",
        *MODEL,
        "--data",
        make("rows.jsonl"),
        *more,
        "--max-steps",
        6,
        "--save-every",
        2,
        "--eval-every",
        2,
    )
    trained(*flags, "-o", "whole")
    assert lmtrain(*flags, "-o", "paused", "--stop-at", 2, "--quiet").code == 0
    trained(*flags, "-o", "paused", "--resume", "auto")
    assert outcome_of("paused") == outcome_of("whole")


def test_a_value_that_is_no_number_is_named_with_its_row():
    data = write("rows.jsonl", [{"text": "a", "label": 1.5}, {"text": "b", "label": "many"}])
    outcome = lmtrain("classify", *MODEL, "--data", data, "--problem-type", "regression", "-o", "run")
    assert outcome.code == 3
    assert "rows.jsonl, line 2, column 'label': is many, not a number" in outcome.err


def test_a_model_of_numbers_says_how_to_read_labels_as_numbers():
    data = numbers("rows.jsonl", 40)
    trained("classify", *MODEL, "--data", data, "--problem-type", "regression", "--max-steps", 1, "-o", "run")
    outcome = lmtrain("eval", "--model", "run", "--data", data, "--problem-type", "single_label_classification")
    assert outcome.code == 3
    assert "--problem-type regression reads labels so" in outcome.err


# --- several labels at once ------------------------------------------------------------------------------------------
def test_several_labels_are_learnt_and_measured_as_by_scikit_learn():
    results = trained("classify", *MODEL, "--data", topics("rows.jsonl", 400), "--max-steps", 300, "-o", "run")
    records = read("run/predictions.jsonl")
    names = sorted(GROUPS)
    true, given = (
        np.array([[int(label in row) for label in names] for row in rows])
        for rows in ([r["references"][0] for r in records], [r["prediction"] for r in records])
    )
    found = results["metrics"]
    assert found["micro_f1"] > 0.7
    assert found["accuracy"] == pytest.approx(accuracy_score(true, given), abs=1e-9)
    assert found["micro_f1"] == pytest.approx(f1_score(true, given, average="micro"), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(f1_score(true, given, average="macro"), abs=1e-9)
    model = AutoModelForSequenceClassification.from_pretrained("run").eval()
    tokenizer = AutoTokenizer.from_pretrained("run")
    assert model.config.problem_type == "multi_label_classification"
    losses = []
    for record, labels in zip(records, true, strict=True):
        with torch.no_grad():
            targets = torch.tensor(labels)[None].float()
            out = model(**tokenizer(record["source"], return_tensors="pt"), labels=targets)
        assert [model.config.id2label[n] for n in np.flatnonzero(out.logits[0] > 0)] == record["prediction"]
        losses.append(float(out.loss))
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    answer = answered("--model", "run", "--prompt", records[0]["source"])[0]
    assert answer["output"] == ", ".join(records[0]["prediction"])


# --- the answer to a question ----------------------------------------------------------------------------------------
def by_hand(model: Any, tokenizer: Any, question: str, context: str, abstains: bool) -> str:
    """The answer by a loop over all windows, first tokens and last tokens."""
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=24, stride=4, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    best, nothing = (-np.inf, ""), np.inf
    for n, ids in enumerate(encoded["input_ids"]):
        with torch.no_grad():
            out = model(torch.tensor([ids]))
        start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
        parts, spans = encoded.sequence_ids(n), encoded["offset_mapping"][n]
        for first in range(len(ids)):
            for last in range(first, min(first + 30, len(ids))):
                if parts[first] == parts[last] == 1 and start[first] + end[last] > best[0]:
                    best = start[first] + end[last], context[spans[first][0] : spans[last][1]]
        nothing = min(nothing, start[0] + end[0])
    return "" if abstains and nothing > best[0] else best[1]


@pytest.mark.parametrize("without", [0.0, 0.4])
def test_answers_are_those_of_transformers_and_metrics_those_of_the_script_of_squad(without: float):
    data = questions("rows.jsonl", 160, without, filler=24)
    windows = ("-L", 24, "--doc-stride", 4)
    results = trained("classify", *MODEL, "--data", data, *windows, "--max-steps", 120, "-o", "run")
    model = AutoModelForQuestionAnswering.from_pretrained("run").eval()
    tokenizer = AutoTokenizer.from_pretrained("run")
    records = read("run/predictions.jsonl")
    for record in records[:12]:
        question, context = record["source"].split("\n", 1)
        assert record["prediction"] == by_hand(model, tokenizer, question, context, without > 0)
    exact = [max(compute_exact(a, r["prediction"]) for a in r["references"]) for r in records]
    f1 = [max(compute_f1(a, r["prediction"]) for a in r["references"]) for r in records]
    assert results["metrics"]["exact_match"] == pytest.approx(100 * np.mean(exact), abs=1e-9)
    assert results["metrics"]["f1"] == pytest.approx(100 * np.mean(f1), abs=1e-9)
    assert results["metrics"]["exact_match"] > 50
    assert any(not record["prediction"] for record in records) == (without > 0)
    assert lmtrain("eval", "--model", "run", "--json", "--quiet").json["metrics"] == pytest.approx(results["metrics"])


def test_the_loss_of_a_window_is_that_of_transformers_whatever_its_batch():
    results = trained(
        "classify",
        *MODEL,
        "--data",
        questions("rows.jsonl", 40),
        "--max-steps",
        2,
        "-o",
        "run",
        "--eval-batch-size",
        1,
    )
    model = AutoModelForQuestionAnswering.from_pretrained("run").eval()
    tokenizer = AutoTokenizer.from_pretrained("run")
    losses = []
    for record in read("run/predictions.jsonl"):
        question, context = record["source"].split("\n", 1)
        start = context.index(record["references"][0])
        encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        parts, (spans,) = encoded.sequence_ids(0), encoded.pop("offset_mapping").tolist()
        end = start + len(record["references"][0])
        inside = [n for n, (a, b) in enumerate(spans) if parts[n] == 1 and b > start and a < end]
        with torch.no_grad():
            first, last = torch.tensor([inside[0]]), torch.tensor([inside[-1]])
            losses.append(float(model(**encoded, start_positions=first, end_positions=last).loss))
        assert record["eval_loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert results["metrics"]["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    again = lmtrain("eval", "--model", "run", "--eval-batch-size", 16, "--json", "--quiet").json["metrics"]
    assert again == pytest.approx(results["metrics"], rel=1e-5)


def test_the_layout_of_squad_is_read_and_generate_answers_a_file():
    rows = [json.loads(line) for line in Path(questions("flat.jsonl", 40)).read_text().splitlines()]
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        row["answers"] = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    articles = [
        {"title": "t", "paragraphs": [{"context": row.pop("context"), "qas": [{**row, "id": str(n)}]}]}
        for n, row in enumerate(rows)
    ]
    Path("squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    nested = trained("classify", *MODEL, "--data", "squad.json", "--max-steps", 4, "-o", "nested")
    flat = trained("classify", *MODEL, "--data", "flat.jsonl", "--max-steps", 4, "-o", "flat")
    assert nested["metrics"] == flat["metrics"]
    assert nested["data"]["kind"] == "question"
    predicted = {record["source"]: record["prediction"] for record in read("flat/predictions.jsonl")}
    answers = answered("--model", "flat", "--data", "flat.jsonl")
    shown = {"\n".join(answer["input"]): answer for answer in answers}
    assert {source: shown[source]["output"] for source in predicted} == predicted
    assert all(sum(a["probability"] for a in answer["answers"]) <= 1 + 1e-6 for answer in answers)
    outcome = lmtrain("generate", "--model", "flat", "--prompt", "who did it?")
    assert outcome.code == 3
    assert "a question needs the text that holds its answer" in outcome.err


def test_an_adapter_answers_as_its_merged_model_does():
    data = questions("rows.jsonl", 60, without=0.3)
    trained("classify", *MODEL, "--data", data, "--max-steps", 4, "-o", "base")
    adapter = trained("classify", "--model", "base", "--lora", "--data", data, "--max-steps", 4, "-o", "adapter")
    outcome = lmtrain("eval", "--model", "adapter", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    again = outcome.json["metrics"]
    assert again == pytest.approx(adapter["metrics"], rel=1e-5)
    assert lmtrain("merge", "adapter", "-o", "merged", "--quiet").code == 0
    merged = lmtrain("eval", "--model", "merged", "--json", "--quiet").json["metrics"]
    assert merged == pytest.approx(adapter["metrics"], rel=1e-5)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["nobody"], "answer_start": [0]}, "'nobody' does not occur in 'context'"),
        ({"text": ["anna"], "answer_start": ["0"]}, "'answer_start' is '0', not a whole number"),
        ({"text": ["anna"], "answer_start": [0, 1]}, "1 texts, but 2 in 'answer_start'"),
    ],
)
def test_an_answer_that_cannot_be_is_named_with_its_row(answers: dict, message: str):
    data = write("rows.jsonl", [{"question": "who?", "context": "it was anna", "answers": answers}] * 4)
    outcome = lmtrain("classify", *MODEL, "--data", data, "-o", "run")
    assert outcome.code == 3
    assert f"rows.jsonl, line 1, column 'answers': {message}" in outcome.err


def test_a_wrong_start_moves_to_the_nearest_occurrence_and_is_counted():
    context = "anna met peter and anna left"
    row = {"question": "who?", "context": context, "answers": {"text": ["anna"], "answer_start": [18]}}
    outcome = lmtrain("preview", "classify", *MODEL, "--data", write("rows.jsonl", [row] * 4), "--json")
    assert outcome.code == 0, outcome.err
    assert "answers do not begin where 'answer_start' says" in outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--label-smoothing", 0.1), "--label-smoothing: only where one of several labels is right"),
        (("--doc-stride", 60, "-L", 32), "--doc-stride 60: is no shorter than a window of --max-length 32"),
        (("--best-metric", "accuracy"), "accuracy is not computed for these labels; there are exact_match, f1"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple, message: str):
    outcome = lmtrain("classify", *MODEL, "--data", questions("rows.jsonl", 40), *flags, "--max-steps", 1, "-o", "run")
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")


def test_white_space_around_an_answer_is_not_part_of_it():
    rows = [json.loads(line) for line in Path(questions("plain.jsonl", 40)).read_text().splitlines()]
    plain_run = trained("classify", *MODEL, "--data", "plain.jsonl", "--max-steps", 3, "-o", "plain")
    for row in rows:
        starts = row["answers"]["answer_start"]
        before = [start > 0 for start in starts]
        row["answers"]["text"] = [" " * b + text for b, text in zip(before, row["answers"]["text"], strict=True)]
        row["answers"]["answer_start"] = [start - b for b, start in zip(before, starts, strict=True)]
    spaced = trained("classify", *MODEL, "--data", write("spaced.jsonl", rows), "--max-steps", 3, "-o", "spaced")
    assert spaced["metrics"] == plain_run["metrics"]


def test_answers_that_no_window_holds_and_questions_without_one_are_reported():
    trained("classify", *MODEL, "--data", questions("rows.jsonl", 40), "--max-steps", 2, "-o", "run")
    outcome = lmtrain("eval", "--model", "run", "--data", questions("none.jsonl", 20, without=0.5))
    assert "questions have no answer, but the model always gives one" in outcome.err
    row = {
        "question": "who?",
        "context": "a film with music and actors",
        "answers": {"text": ["film with music and actors"]},
    }
    outcome = lmtrain(
        "preview", "classify", *MODEL, "--data", write("long.jsonl", [row] * 8), "-L", 9, "--doc-stride", 0
    )
    assert "answers are in no window as a whole" in outcome.err


@pytest.mark.parametrize(("make", "more"), [(numbers, ("--problem-type", "regression")), (reviews, ())])
def test_an_adapter_on_a_classifier_is_scored_and_merged(make: Any, more: tuple):
    data = make("rows.jsonl", 60)
    trained("classify", *MODEL, "--data", data, *more, "--max-steps", 3, "-o", "base")
    adapter = trained(
        "classify", "--model", "base", "--lora", "--data", data, *more, "--max-steps", 3, "-o", "adapter"
    )
    outcome = lmtrain("eval", "--model", "adapter", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.json["metrics"]["eval_loss"] == pytest.approx(adapter["metrics"]["eval_loss"], rel=1e-5)
    assert lmtrain("merge", "adapter", "-o", "merged", "--quiet").code == 0
    merged = lmtrain("eval", "--model", "merged", "--json", "--quiet").json["metrics"]
    assert merged["eval_loss"] == pytest.approx(adapter["metrics"]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ([1.0, 0.0, 0.0], (), "has the label '0.0' twice"),
        (1e39, ("--problem-type", "regression"), "not a number"),
    ],
)
def test_a_label_that_cannot_be_is_named(labels: Any, more: tuple, message: str):
    data = write("rows.jsonl", [{"text": "the film", "label": labels}] * 8)
    outcome = lmtrain("classify", *MODEL, "--data", data, *more, "-o", "run")
    assert outcome.code == 3
    assert message in outcome.err


# --- the report ------------------------------------------------------------------------------------------------------
def tables_of(page: str, title: str) -> list[list[str]]:
    """The cells of the table under a heading of a page."""
    part = page.split(f">{title}<", 1)[1].split("</table>", 1)[0]
    rows = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in part.split("<tr>")[1:])
    return [list(map(unescape, row)) for row in rows]


def test_the_report_has_figures_of_each_label_and_a_table_of_confusions():
    trained("classify", *MODEL, "--data", reviews("rows.jsonl", 60), "--max-steps", 8, "-o", "run")
    records, page = read("run/predictions.jsonl"), Path("run/report.html").read_text()
    true, given = [r["references"][0] for r in records], [r["prediction"] for r in records]
    labels = ["negative", "positive"]
    head, *rows = tables_of(page, "Which label was taken for which")
    assert head[1:] == labels
    assert [list(map(int, row[1:])) for row in rows] == confusion_matrix(true, given, labels=labels).tolist()
    values = precision_recall_fscore_support(true, given, labels=labels, zero_division=0)
    for row, precision, recall, f1, count in zip(tables_of(page, "Labels")[1:], *values, strict=True):
        assert int(row[1]) == count
        shown = [0.0 if cell == "–" else float(cell) for cell in row[2:]]
        assert shown == pytest.approx([precision, recall, f1], abs=1e-4)


def test_the_report_has_figures_of_several_labels():
    trained("classify", *MODEL, "--data", topics("rows.jsonl", 80), "--max-steps", 30, "-o", "run")
    records, page = read("run/predictions.jsonl"), Path("run/report.html").read_text()
    for label, count, *_, f1 in tables_of(page, "Labels")[1:]:
        true, given = ([int(label in row) for row in rows] for rows in _columns(records))
        assert int(count) == sum(true)
        assert float(f1) == pytest.approx(f1_score(true, given), abs=1e-4)


def _columns(records: list[dict]) -> tuple[list[list[str]], list[list[str]]]:
    return [record["references"][0] for record in records], [record["prediction"] for record in records]
