"""`lmtrain classify`: texts, pairs of texts and words get their labels."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lmtrain, outcome_of, scratch, trained
from tiny_models import SIZES
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForMaskedLM,
)

GOOD, BAD = ["good", "fine", "happy", "nice"], ["bad", "ugly", "sad", "poor"]
FILLER = ["the", "film", "was", "a", "story", "with", "actors", "and", "music"]
PEOPLE, PLACES = ("anna", "peter"), ("seoul", "paris")
MODEL = (*scratch("bert"), "--learning-rate", 3e-3, "--batch-size", 16)


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def reviews(name: str, count: int, seed: int = 1) -> str:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        label = draw.choice(("positive", "negative"))
        words = [draw.choice(FILLER) for _ in range(draw.randint(3, 9))]
        words[draw.randrange(len(words))] = draw.choice(GOOD if label == "positive" else BAD)
        rows.append({"text": " ".join(words), "label": label})
    return write(name, rows)


def sentences_with_names(name: str, count: int, seed: int = 1) -> str:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = [draw.choice(FILLER) for _ in range(8)]
        tags, at = ["O"] * 8, draw.randrange(7)
        words[at] = draw.choice((*PEOPLE, *PLACES))
        tags[at] = "B-PER" if words[at] in PEOPLE else "B-LOC"
        if words[at] in PLACES and draw.random() < 0.5:
            words[at + 1], tags[at + 1] = "city", "I-LOC"
        rows.append({"tokens": words, "tags": tags})
    return write(name, rows)


def pairs(name: str, count: int, seed: int = 1) -> str:
    draw, rows = random.Random(seed), []
    for n in range(count):
        words = [draw.choice(FILLER) for _ in range(4)]
        other = words if n % 2 else [draw.choice(FILLER) for _ in range(4)]
        label = "same" if other == words else "other"
        rows.append({"premise": " ".join(words), "hypothesis": " ".join(other), "label": label})
    return write(name, rows)


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def answered(*flags: str) -> list[dict]:
    outcome = lmtrain("generate", *flags, "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


# --- what is learnt, and how it is measured --------------------------------------------------------------------------


def test_a_text_classifier_is_an_ordinary_transformers_model():
    metrics = pytest.importorskip("sklearn.metrics")
    reviews("train.jsonl", 300), reviews("test.jsonl", 60, seed=2)
    done = trained(
        "classify", *MODEL, "--data", "train.jsonl", "--eval-data", "test.jsonl", "--epochs", 3, "-o", "run"
    )
    assert done["metrics"]["accuracy"] > 0.9
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    rows = read("test.jsonl")
    logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    predicted = [model.config.id2label[int(each.argmax())] for each in logits]
    true = [row["label"] for row in rows]
    assert [row["prediction"] for row in read("run/predictions.jsonl")] == predicted
    assert done["metrics"]["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-9)
    assert done["metrics"]["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"), abs=1e-9)
    losses = [
        -each.double().log_softmax(-1)[model.config.label2id[label]] for each, label in zip(logits, true, strict=True)
    ]
    assert done["metrics"]["eval_loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-6)


def test_a_tagger_is_an_ordinary_transformers_model():
    metrics = pytest.importorskip("seqeval.metrics")
    sentences_with_names("train.jsonl", 300), sentences_with_names("test.jsonl", 60, seed=2)
    done = trained(
        "classify", *MODEL, "--data", "train.jsonl", "--eval-data", "test.jsonl", "--epochs", 2, "-o", "run"
    )
    model, tokenizer = AutoModelForTokenClassification.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-LOC", 3: "O"}
    true, predicted = [], []
    for row in read("test.jsonl"):
        encoded = tokenizer(" ".join(row["tokens"]), return_offsets_mapping=True, return_tensors="pt")
        starts = {int(start): at for at, (start, end) in enumerate(encoded.pop("offset_mapping")[0]) if end > start}
        best = model(**encoded).logits[0].argmax(-1)
        places = np.cumsum([0, *(len(word) + 1 for word in row["tokens"][:-1])])
        predicted.append([model.config.id2label[int(best[starts[int(place)]])] for place in places])
        true.append(row["tags"])
    assert [row["prediction"] for row in read("run/predictions.jsonl")] == predicted
    assert done["metrics"]["entity_f1"] > 0.3
    for name, function in {"precision": "precision_score", "recall": "recall_score", "f1": "f1_score"}.items():
        expected = getattr(metrics, function)(true, predicted)
        assert done["metrics"][f"entity_{name}"] == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize(
    "flags", [(), ("--text-column", "premise", "--text-pair-column", "hypothesis", "--label-column", "label")]
)
def test_the_texts_of_a_pair_have_a_separator_between_them(flags: tuple[str, ...]):
    pairs("train.jsonl", 60)
    done = trained(
        "classify", *MODEL, "--data", "train.jsonl", *flags, "--max-steps", 2, "--val-split", 0.3, "-o", "run"
    )
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    of_text = {row["premise"] + row["hypothesis"]: row for row in read("train.jsonl")}
    losses = []
    for row in read("run/predictions.jsonl"):
        (found,) = (
            known for known in of_text.values() if f"{known['premise']} {known['hypothesis']}" == row["source"]
        )
        encoded = tokenizer(found["premise"], found["hypothesis"], return_tensors="pt")
        assert encoded["input_ids"][0].tolist().count(tokenizer.sep_token_id) == 2
        assert encoded["input_ids"][0].tolist().count(tokenizer.cls_token_id) == 1
        losses.append(-model(**encoded).logits[0].double().log_softmax(-1)[model.config.label2id[found["label"]]])
    assert done["metrics"]["eval_loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-6)


def test_the_loss_does_not_depend_on_how_a_step_is_divided():
    sentences_with_names("train.jsonl", 96)
    flags = ("--data", "train.jsonl", "--max-steps", 4, "--val-split", 0.1, "--log-every", 1)
    losses = {}
    for rows, accumulated in ((16, 1), (4, 4)):
        run = f"run-{rows}"
        trained("classify", *MODEL, *flags, "--batch-size", rows, "--grad-accum", accumulated,
                "--model-config", "hidden_dropout_prob=0,attention_probs_dropout_prob=0", "-o", run)  # fmt: skip
        losses[rows] = [line["loss"] for line in read(f"{run}/metrics.jsonl") if "loss" in line]
    assert losses[16] == pytest.approx(losses[4], rel=1e-5)


def test_a_paused_run_goes_on_bit_for_bit():
    reviews("train.jsonl", 120)
    flags = ("--data", "train.jsonl", "--max-steps", 8, "--save-every", 4, "--eval-every", 4, "--log-every", 1)
    trained("classify", *MODEL, *flags, "-o", "whole")
    trained("classify", *MODEL, *flags, "--stop-at", 4, "-o", "paused")
    trained("classify", *MODEL, *flags, "--resume", "auto", "-o", "paused")
    assert outcome_of("paused") == outcome_of("whole")


# --- models ----------------------------------------------------------------------------------------------------------


def test_the_encoder_of_a_masked_model_gets_a_new_head(bert: Path):
    reviews("train.jsonl", 40)
    outcome = lmtrain("classify", "--model", bert, "--data", "train.jsonl", "--max-steps", 0, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "the head is new and starts at random" in outcome.err and "classifier.weight" in outcome.err
    encoder = BertForMaskedLM.from_pretrained(bert).bert.encoder.state_dict()
    classifier = AutoModelForSequenceClassification.from_pretrained("run").bert.encoder.state_dict()
    assert all(torch.equal(tensor, classifier[name]) for name, tensor in encoder.items())


def test_a_classifier_keeps_its_head_for_its_own_labels_and_gets_another_one_for_others():
    reviews("train.jsonl", 120)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 20, "-o", "run")
    again = trained("classify", "--model", "run", "--data", "train.jsonl", "--max-steps", 0, "-o", "again")
    assert again["metrics"] == json.loads(Path("run/results.json").read_text())["metrics"]
    rows = [{"text": row["text"], "label": str(n % 3)} for n, row in enumerate(read("train.jsonl"))]
    write("three.jsonl", rows)
    outcome = lmtrain("classify", "--model", "run", "--data", "three.jsonl", "--max-steps", 1, "-o", "three")
    assert outcome.code == 0, outcome.err
    assert "the head is new" in outcome.err
    assert AutoModelForSequenceClassification.from_pretrained("three").config.id2label == {0: "0", 1: "1", 2: "2"}


def test_labels_that_are_numbers_are_sorted_by_value():
    rows = [{"text": f"the film {n}", "label": n % 13 - 2} for n in range(52)]
    write("train.jsonl", rows)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 1, "-o", "run")
    labels = json.loads(Path("run/config.json").read_text())["id2label"]
    assert [labels[str(n)] for n in range(13)] == [str(n - 2) for n in range(13)]


def test_other_labels_get_another_head_even_if_there_are_as_many():
    reviews("train.jsonl", 60)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 5, "-o", "run")
    write("other.jsonl", [{**row, "label": row["label"] + "?"} for row in read("train.jsonl")])
    outcome = lmtrain("classify", "--model", "run", "--data", "other.jsonl", "--max-steps", 0, "-o", "other")
    assert "the head is new and starts at random, because the labels are others: dropout, classifier" in outcome.err
    before, after = (AutoModelForSequenceClassification.from_pretrained(name) for name in ("run", "other"))
    assert not torch.equal(before.classifier.weight, after.classifier.weight)
    assert torch.equal(before.bert.pooler.dense.weight, after.bert.pooler.dense.weight)


def test_cached_rows_have_the_numbers_of_the_labels_of_the_model():
    reviews("two.jsonl", 60)
    write("three.jsonl", [*read("two.jsonl"), *({"text": "the film", "label": "mixed"} for _ in range(9))])
    trained("classify", *MODEL, "--tokenizer", "byte", "--data", "two.jsonl", "--max-steps", 1, "-o", "two")
    trained("classify", *MODEL, "--tokenizer", "byte", "--data", "three.jsonl", "--max-steps", 30, "-o", "three")
    flags = ("classify", "--model", "three", "--data", "two.jsonl", "--max-steps", 0)
    cached = trained(*flags, "-o", "cached")
    assert cached["metrics"] == trained(*flags, "--no-cache", "-o", "read")["metrics"]
    known = {row["text"]: row["label"] for row in read("two.jsonl")}
    assert all(row["references"] == [known[row["source"]]] for row in read("cached/predictions.jsonl"))


def test_a_model_whose_own_loss_wants_other_shapes_is_trained():
    reviews("train.jsonl", 40)
    sizes = ",".join(f"{name}={value}" for name, value in SIZES["deberta-v2"].items())
    model = ("--model", "deberta-v2", "--from-scratch", "--model-config", sizes, "--tokenizer", "wordpiece:200")
    done = trained("classify", *model, "--data", "train.jsonl", "--max-steps", 2, "-o", "run")
    assert done["metrics"]["accuracy"] >= 0


def test_a_sentence_that_is_cut_on_the_left_keeps_the_tags_of_its_words():
    sentences_with_names("train.jsonl", 40)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 1, "-o", "run")
    settings = json.loads(Path("run/tokenizer_config.json").read_text())
    Path("run/tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left"}))
    rows = [{"tokens": [*FILLER[:6], "anna", "seoul"], "tags": [*["O"] * 6, "B-PER", "B-LOC"]}]
    write("test.jsonl", rows)
    done = trained("eval", "--model", "run", "--data", "test.jsonl", "--max-length", 4, "--predictions", "out.jsonl")
    (row,) = read("out.jsonl")
    assert (
        row["references"] == [["B-PER", "B-LOC"]][: len(row["source"].split())] or row["references"][0][-1] == "B-LOC"
    )
    assert done["data"]["eval"]["rows_truncated"] == 1


def test_single_texts_and_pairs_can_be_mixed(bert: Path):
    reviews("train.jsonl", 30), pairs("pairs.jsonl", 30)
    done = trained(
        "classify", "--model", bert, "--data", "train.jsonl", "--data", "pairs.jsonl", "--max-steps", 1, "-o", "run"
    )
    assert done["data"]["labels"] == ["negative", "other", "positive", "same"]


def test_a_template_can_be_the_first_text_of_a_pair():
    pairs("train.jsonl", 30)
    flags = ("--text-column", "{premise} / {label}", "--text-pair-column", "hypothesis", "--label-column", "label")
    trained("classify", *MODEL, "--tokenizer", "byte", "--data", "train.jsonl", *flags, "--max-steps", 1, "-o", "run")
    assert all("{" not in row["source"] and "/" in row["source"] for row in read("run/predictions.jsonl"))


def test_rows_of_another_kind_are_refused_by_eval():
    sentences_with_names("train.jsonl", 40)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 1, "-o", "run")
    write("test.jsonl", [{"text": "the film", "label": "O"}])
    outcome = lmtrain("eval", "--model", "run", "--data", "test.jsonl")
    assert outcome.code == 3 and "this model tags words, but the rows need one that gives texts a label" in outcome.err


@pytest.mark.parametrize("make", [reviews, sentences_with_names])
def test_an_adapter_is_scored_merged_and_continued_with_its_labels(make: Callable, bert: Path):
    make("train.jsonl", 120), make("test.jsonl", 40, seed=2)
    data = ("--data", "train.jsonl", "--eval-data", "test.jsonl")
    run = ("classify", "--model", bert, "--lora", *data, "--learning-rate", 5e-3, "--max-steps", 20)
    done = trained(*run, "-o", "run")
    assert done["data"]["labels"] == sorted(done["data"]["labels"]) != []
    again = trained("eval", "--model", "run")
    assert again["metrics"] == pytest.approx(done["metrics"], rel=1e-5)
    assert lmtrain("merge", "run", "-o", "merged").code == 0
    merged = trained("eval", "--model", "merged", "--data", "test.jsonl")
    assert merged["metrics"] == pytest.approx(done["metrics"], rel=1e-4)
    assert "labels" in answered("--model", "run", "--prompt", "the film")[0] or make is sentences_with_names
    saved = trained("eval", "--model", sorted(Path("run/checkpoints").iterdir())[-1], "--data", "test.jsonl")
    assert saved["metrics"].keys() == done["metrics"].keys()
    pairs("others.jsonl", 30)
    other = lmtrain("classify", "--model", "run", "--lora", "--data", "others.jsonl", "--max-steps", 1)
    assert other.code == 3 and "an adapter for the labels" in other.err
    further = trained("classify", "--model", "run", "--lora", *data, "--max-steps", 0, "-o", "further")
    assert further["metrics"] == pytest.approx(done["metrics"], rel=1e-5)


def test_a_paused_adapter_goes_on_bit_for_bit(bert: Path):
    reviews("train.jsonl", 120)
    flags = ("--data", "train.jsonl", "--max-steps", 8, "--save-every", 4, "--eval-every", 4, "--log-every", 1)
    run = ("classify", "--model", bert, "--lora", *flags)
    trained(*run, "-o", "whole")
    trained(*run, "--stop-at", 4, "-o", "paused")
    trained(*run, "--resume", "auto", "-o", "paused")
    name = "adapter_model.safetensors"
    assert outcome_of("paused", name) == outcome_of("whole", name)


# --- other commands --------------------------------------------------------------------------------------------------


def test_eval_generate_and_compare_know_the_labels():
    reviews("train.jsonl", 200), reviews("test.jsonl", 40, seed=3)
    run = ("classify", *MODEL, "--data", "train.jsonl", "--eval-data", "test.jsonl")
    for name, steps in (("short", 2), ("long", 60)):
        done = trained(*run, "--max-steps", steps, "-o", name)
    again = trained("eval", "--model", "long", "--predictions", "long.jsonl")
    assert (again["metrics"], again["intervals"]) == (done["metrics"], done["intervals"])
    against = trained("eval", "--model", "short", "--against", "long.jsonl")["against"]
    assert against["accuracy"]["other"] == pytest.approx(done["metrics"]["accuracy"])
    compared = lmtrain("compare", "short", "long", "--json").json
    tested = {pair["metric"]: pair for pair in compared["pairs"]}
    assert tested["accuracy"]["difference"] == pytest.approx(against["accuracy"]["difference"])
    answers = answered("--model", "long", "--data", "test.jsonl")
    assert [answer["output"] for answer in answers] == [row["prediction"] for row in read("long.jsonl")]
    best = answers[0]["labels"]
    assert best[0]["label"] == answers[0]["output"]
    assert sum(label["probability"] for label in best) == pytest.approx(1, abs=1e-5)


def test_generate_reads_pairs_as_training_did():
    pairs("train.jsonl", 60)
    trained("classify", *MODEL, "--data", "train.jsonl", "--max-steps", 4, "--val-split", 0.3, "-o", "run")
    held = read("run/predictions.jsonl")
    answers = answered("--model", "run", "--data", "train.jsonl")
    by_text = {" ".join(answer["input"]): answer["output"] for answer in answers}
    assert [by_text[row["source"]] for row in held] == [row["prediction"] for row in held]


def test_generate_tags_words():
    sentences_with_names("train.jsonl", 300)
    trained("classify", *MODEL, "--data", "train.jsonl", "--epochs", 5, "-o", "run")
    (answer,) = answered("--model", "run", "--prompt", "the story was anna with seoul city")
    assert answer["tags"] == ["O", "O", "O", "B-PER", "O", "B-LOC", "I-LOC"]
    assert answer["output"].startswith("the/O story/O was/O anna/B-PER")


def test_preview_shows_the_labels():
    sentences_with_names("train.jsonl", 20)
    outcome = lmtrain("preview", "classify", *scratch("bert"), "--data", "train.jsonl")
    assert outcome.code == 0 and "B-" in outcome.out and "[" in outcome.out, outcome.err


def test_named_sets_have_label_metrics_of_their_own():
    reviews("train.jsonl", 120), reviews("a.jsonl", 20, seed=5), reviews("b.jsonl", 30, seed=6)
    sets = ("--eval-data", "dev=a.jsonl", "--eval-data", "test=b.jsonl")
    done = trained("classify", *MODEL, "--data", "train.jsonl", *sets, "--max-steps", 10, "-o", "run")
    for name, file in (("dev", "a.jsonl"), ("test", "b.jsonl")):
        alone = trained("eval", "--model", "run", "--data", file)
        assert done["metrics"][f"{name}.macro_f1"] == alone["metrics"]["macro_f1"]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_an_unknown_label_is_named_with_its_row():
    reviews("train.jsonl", 30)
    write("test.jsonl", [{"text": "the film", "label": "positive"}, {"text": "a story", "label": "mixed"}])
    outcome = lmtrain("classify", *MODEL, "--data", "train.jsonl", "--eval-data", "test.jsonl", "--max-steps", 1)
    assert outcome.code == 3
    assert "test.jsonl, line 2: the label 'mixed' is not known; there are negative, positive" in outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--streaming", "--max-steps", 2), "all labels must be known before training"),
        (("--text-pair-column", "x"), "needs --text-column and --label-column"),
        (("--assert", "entity_f1>0.5"), "entity_f1 is not computed for these labels"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple, message: str):
    reviews("train.jsonl", 30)
    outcome = lmtrain("classify", *MODEL, "--data", "train.jsonl", *flags)
    assert outcome.code in (2, 3)
    assert message in " ".join(outcome.err.split())


def test_one_label_is_too_few():
    write("train.jsonl", [{"text": f"the film {n}", "label": "good"} for n in range(10)])
    outcome = lmtrain("classify", *MODEL, "--data", "train.jsonl")
    assert outcome.code == 3 and "all training rows have one label, 'good'" in outcome.err


def test_a_masked_model_cannot_be_evaluated_as_a_classifier(bert: Path):
    reviews("test.jsonl", 10)
    outcome = lmtrain("eval", "--model", bert, "--objective", "classify", "--data", "test.jsonl")
    assert outcome.code == 3 and "this model gives no labels; train it with classify" in outcome.err
