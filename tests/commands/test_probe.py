"""`lmtrain probe`: known answers are found, and nothing but the data influences the metrics."""

import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NOUNS, TINY, lmtrain, sentences, trained
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from lmtrain.commands.probe import classifier, encoder
from lmtrain.config.data import MlmData
from lmtrain.config.eval import Probing
from lmtrain.config.labelled_data import LabelledData
from lmtrain.config.model import Model
from lmtrain.data import corpus
from lmtrain.data.readers import columnar
from lmtrain.data.reading import load
from lmtrain.modeling.loss import evaluating
from lmtrain.preprocessing import words as words_of_text
from lmtrain.runtime.console import Console


def probe(*arguments) -> dict:
    outcome = lmtrain("probe", *arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


def write_rows(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def royal() -> str:
    """Sentences that are labelled by whether a king is in them; of very different lengths."""
    lines = [" and ".join(sentences(240)[i : i + 1 + i % 4]) for i in range(240)]
    return write_rows("royal.jsonl", [{"text": t, "label": "king" if "king" in t else "none"} for t in lines])


def kings() -> str:
    """Sentences in which kings are persons, children too, and rivers are places."""
    tags = {"king": "B-PER", "child": "B-PER", "river": "B-LOC"}
    lines = [line.split() for line in sentences(120)]
    return write_rows("kings.jsonl", [{"tokens": w, "tags": [tags.get(word, "O") for word in w]} for w in lines])


# --- data with a known answer ----------------------------------------------------------------------------------------


def test_labels_that_the_states_encode_are_predicted(bert: Path):
    found = probe("--model", bert, "--data", royal())
    assert found["metrics"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert found["baseline"]["method"] in ("always 'king'", "always 'none'")
    assert found["baseline"]["metrics"]["accuracy"] < 0.7
    tags = probe("--model", bert, "--data", kings())
    assert tags["metrics"] == {"accuracy": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "entity_f1": 1.0}


def test_random_labels_are_predicted_at_chance_level(bert: Path):
    draw = random.Random(1)
    rows = [{"text": line, "label": draw.choice("ab")} for line in sentences(400)]
    found = probe("--model", bert, "--data", write_rows("x.jsonl", rows), "--val-split", 0.5)
    low, high = found["intervals"]["accuracy"]
    assert 0.4 < found["metrics"]["accuracy"] < 0.6
    assert low < found["metrics"]["accuracy"] < high


@pytest.mark.slow
@pytest.mark.parametrize("data", [royal, kings])
def test_metrics_do_not_depend_on_the_batch_size_and_are_deterministic(bert: Path, data):
    # Few training rows, so that the metrics are below 1 and could differ.
    flags = ["--model", bert, "--data", data(), "--val-split", 0.9, "--l2", 30]
    first = probe(*flags)
    assert first["metrics"]["accuracy"] < 1
    for size in (1, 3, 500, 32):
        assert probe(*flags, "-b", size)["metrics"] == first["metrics"]
    assert probe(*flags)["intervals"] == first["intervals"]


# --- the features ----------------------------------------------------------------------------------------------------


def load_encoder(name: Path | str) -> encoder.Encoder:
    return encoder.load(Model(name=str(name)), None, Console(quiet=True))


SCRATCH = ("roberta", "modernbert", "electra", "convbert", "deberta-v2")
"""Encoders without a fixture of their own."""


@pytest.fixture(params=["bert", "gpt2", "t5", *SCRATCH])
def any_model(request: pytest.FixtureRequest, material: Path) -> Path:
    name = request.param
    if name not in SCRATCH:
        return request.getfixturevalue(name)
    flags = ["--model", name, "--from-scratch", "--model-config", TINY[name], "--tokenizer", "wordpiece:200"]
    trained("mlm", *flags, "--data", material / "text.jsonl#10", "--max-steps", 0, "-o", "RUN")
    return Path("RUN")


def test_features_are_the_same_alone_and_in_any_batch(any_model: Path):
    encoder = load_encoder(any_model)
    texts = ["the cat", *(" and ".join(sentences(9)[: 1 + i % 7]) for i in range(9))]
    encoded = encoder.encode_texts(texts)
    together = encoder.features(encoded, 10, Console(quiet=True))
    if (
        "convbert" not in encoder.network.config.model_type
    ):  # convbert depends on padding, so only rows of one length share a batch
        with evaluating(encoder.network), torch.no_grad():
            padded = encoder.vectors([encoded.ids[0], max(encoded.ids, key=len)], None)[0]
        assert np.allclose(padded, together[0], atol=2e-6)
    for size in (1, 4):
        assert np.allclose(encoder.features(encoded, size, Console(quiet=True)), together, atol=2e-6)
    words = [text.split() for text in texts]
    tagged = encoder.encode_words(words)
    by_word = encoder.features(tagged, 10, Console(quiet=True))
    assert len(by_word) == sum(map(len, words)) and all((tokens >= 0).all() for tokens in tagged.first_tokens)
    assert np.allclose(encoder.features(tagged, 1, Console(quiet=True)), by_word, atol=2e-6)


@torch.no_grad()
def test_text_vector_is_the_mean_state_and_word_vector_the_state_of_its_first_token(bert: Path):
    network, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    words = ["the", "childless", "kingdom", "sees", "the", "rivers"]
    encoding = tokenizer(" ".join(words), return_tensors="pt")
    states = network(**encoding).last_hidden_state[0].double().numpy()
    first = [encoding.word_ids().index(number) for number in range(len(words))]
    assert len(states) > len(words) + 2, "some words have several tokens"
    encoder = load_encoder(bert)
    of_text = encoder.features(encoder.encode_texts([" ".join(words)]), 1, Console(quiet=True))
    of_words = encoder.features(encoder.encode_words([words]), 1, Console(quiet=True))
    assert np.allclose(of_text, states.mean(0), atol=1e-6)
    assert np.allclose(of_words, states[first], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "spans", "first_tokens"),
    [
        (["ab", "c"], [(0, 0), (0, 1), (1, 2), (3, 4), (0, 0)], [1, 3]),
        (["ab", "c"], [(0, 2), (2, 3), (3, 4)], [0, 2]),  # the space is a token
        (["ab", "c"], [(0, 2), (2, 4)], [0, 1]),  # byte-level: the space belongs to the token
        (["ab", "", "c"], [(0, 2), (4, 5)], [0, -1, 1]),
        (["ab", "\u200b", "c"], [(0, 2), (5, 6)], [0, -1, 1]),  # a word without a token
        (["ab", "c", "d"], [(0, 2), (3, 4)], [0, 1, -1]),  # cut off
        (["a", "b"], [(0, 3)], [0, 0]),  # one token for both
        (["don't", "go"], [(0, 3), (3, 4), (4, 5), (6, 8)], [0, 3]),
    ],
)
def test_first_token_of_each_word_from_character_spans(words: list, spans: list, first_tokens: list):
    assert words_of_text.first_tokens(words, spans).tolist() == first_tokens


def test_regression_reaches_the_minimum_of_newtons_method():
    random = np.random.default_rng(0)
    x, y, l2 = random.normal(size=(60, 4)), random.integers(0, 3, 60), 0.7
    weight, bias = classifier.regression(torch.from_numpy(x), torch.from_numpy(y), 3, l2, Console(quiet=True))
    design = np.hstack([x, np.ones((60, 1))])
    held = np.repeat([1.0, 1, 1, 1, 0], 3)  # the bias is not penalized
    found = np.zeros(15)
    for _ in range(30):
        scores = np.exp(design @ found.reshape(5, 3))
        p = scores / scores.sum(1, keepdims=True)
        gradient = (design.T @ (p - np.eye(3)[y])).ravel() + l2 * held * found
        spread = np.einsum("nk,kl->nkl", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
        hessian = np.einsum("ni,nj,nkl->ikjl", design, design, spread).reshape(15, 15) + np.diag(l2 * held)
        found -= np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    assert np.abs(gradient).max() < 1e-9
    assert np.allclose(weight, found.reshape(5, 3)[:4], atol=2e-3)
    ours, theirs = bias.numpy(), found.reshape(5, 3)[4]
    assert np.allclose(ours - ours.mean(), theirs - theirs.mean(), atol=2e-3)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_learns_and_updates_every_weight_that_is_used(bert: Path):
    lines = [f"the {a} sees the {b}" for a in NOUNS[:4] for b in NOUNS[:4] if a != b] * 8
    data = write_rows("subjects.jsonl", [{"text": line, "label": line.split()[1]} for line in lines])
    tuned = probe("--model", bert, "--data", data, "--fine-tune", "--epochs", 10, "--lr", 3e-3, "-b", 4)
    assert tuned["metrics"]["accuracy"] == 1.0
    encoder = load_encoder(bert)
    before = {name: weight.clone() for name, weight in encoder.network.state_dict().items()}
    encoded = encoder.encode_texts(lines[:12])
    classifier.fine_tune(encoder, encoded, np.arange(12) % 3, encoded, 3, Probing(epochs=2), Console(quiet=True))
    after = encoder.network.state_dict()
    unchanged = [name for name, weight in before.items() if torch.equal(weight, after[name])]
    assert [name for name in unchanged if not name.startswith("pooler.")] == []


def test_fine_tuning_is_deterministic_and_depends_on_the_seed(bert: Path):
    flags = ["--model", bert, "--data", royal(), "--eval-data", royal(), "--fine-tune", "--epochs", 1, "--lr", 1e-3]
    first, again, other = (probe(*flags, "--seed", seed)["metrics"] for seed in (1, 1, 2))
    assert first == again != other


def test_fine_tuning_on_tags(bert: Path):
    tuned = probe("--model", bert, "--data", kings(), "--fine-tune", "--epochs", 6, "--lr", 3e-3, "-b", 4)
    assert tuned["metrics"]["entity_f1"] == 1.0
    assert "fine-tuned|first token of a word" in tuned["signatures"]["entity_f1"]


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_are_compared_with_the_first(bert: Path, gpt2: Path):
    flags = ["--data", royal(), "--val-split", 0.9, "--l2", 30]
    found = probe("--model", bert, "--model", gpt2, "--model", bert, *flags)
    first, second, third = found["models"]
    assert "against" not in first
    assert second["metrics"] == probe("--model", gpt2, *flags)["metrics"]
    compared = second["against"]["accuracy"]
    assert compared["value"] == second["metrics"]["accuracy"] and compared["other"] == first["metrics"]["accuracy"]
    assert compared["difference"] == pytest.approx(compared["value"] - compared["other"])
    low, high = compared["interval"]
    assert low <= compared["difference"] <= high
    assert (third["against"]["accuracy"]["difference"], third["against"]["accuracy"]["p_value"]) == (0.0, 1.0)
    assert found["metrics"] == third["metrics"] and found["against"] == third["against"]


def test_table_shows_models_side_by_side(bert: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    outcome = lmtrain("probe", "--model", bert, "--model", gpt2, "--data", royal())
    assert outcome.code == 0
    header, accuracy, against = (
        next(line for line in outcome.out.splitlines() if name in line)
        for name in ("baseline", "accuracy ", "accuracy against")
    )
    assert "bert" in header and "gpt2" in header
    assert "1.0000 [1.0000, 1.0000]" in accuracy
    assert "p = " in against
    assert "gpt2 reads from left to right" in outcome.err.replace("\n", " ")


def test_a_model_without_a_head_gives_the_same_metrics(bert: Path):
    flags = ["--data", royal(), "--val-split", 0.9, "--l2", 30]
    AutoModel.from_pretrained(bert).save_pretrained("body")
    AutoTokenizer.from_pretrained(bert).save_pretrained("body")
    outcome = lmtrain("probe", "--model", "body", *flags, "--json")
    assert outcome.json["metrics"] == probe("--model", bert, *flags)["metrics"]
    assert "head" not in outcome.err and "missing" not in outcome.err


def test_a_missing_layer_is_an_error(bert: Path):
    shutil.copytree(bert, "damaged")
    weights = load_file("damaged/model.safetensors")
    lost = next(name for name in weights if "layer.1" in name)
    save_file({n: t for n, t in weights.items() if n != lost}, "damaged/model.safetensors", {"format": "pt"})
    outcome = lmtrain("probe", "--model", "damaged", "--data", royal())
    assert outcome.code == 3
    assert "damaged: weights are missing: encoder.layer.1" in outcome.err.replace("\n", " ")


def test_adapter_features_equal_those_of_the_merged_model(bert: Path):
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings(action="ignore"):  # peft uses a deprecated name of transformers
        network = get_peft_model(
            AutoModelForMaskedLM.from_pretrained(bert), LoraConfig(target_modules=["query", "value"], r=4)
        )
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    network.save_pretrained("adapter")
    network.merge_and_unload().save_pretrained("merged")
    AutoTokenizer.from_pretrained(bert).save_pretrained("merged")
    encoders = [load_encoder(name) for name in ("adapter", "merged", bert)]
    adapter, merged, base = (e.features(e.encode_texts(["the cat"]), 1, Console(quiet=True)) for e in encoders)
    assert np.allclose(adapter, merged, atol=1e-5) and not np.allclose(adapter, base, atol=1e-2)


# --- data ------------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_those_of_training():
    rows = [{"text": line, "label": i % 2} for i, line in enumerate(sentences(50))]
    name = write_rows("x.jsonl", rows)
    _, trained_on = corpus.read(MlmData(train=[name], val_split=0.3), seed=7)
    _, probed_on = corpus.read(LabelledData(train=[name], val_split=0.3), seed=7)
    assert [text for text, _ in probed_on.values] == trained_on.values


def test_labels_unknown_to_training_are_counted_as_wrong(bert: Path):
    train = write_rows("train.jsonl", [{"text": "the cat", "label": 1}, {"text": "a dog", "label": 2}] * 8)
    held = write_rows("held.jsonl", [{"text": "the cat", "label": 1}, {"text": "a king", "label": 7}])
    outcome = lmtrain("probe", "--model", bert, "--data", train, "--eval-data", held, "--json")
    assert outcome.json["metrics"]["accuracy"] == 0.5
    assert outcome.json["data"]["eval"]["unknown_labels"] == 1
    assert "1 evaluation labels ('7') do not occur in the training data" in outcome.err.replace("\n", " ")


def test_empty_and_bad_rows_are_left_out_and_counted(bert: Path):
    rows = [{"text": line, "label": i % 2} for i, line in enumerate(sentences(30))]
    data = write_rows("x.jsonl", [*rows, {"text": " ", "label": 1}, {"text": "x", "label": None}])
    found = probe("--model", bert, "--data", data, "--on-bad", "drop")["data"]
    assert [found["train"][f"rows_{fate}"] for fate in ("read", "empty", "bad", "used")] == [26, 1, 1, 24]
    assert found["eval"]["rows_used"] == 6


def test_words_that_are_cut_off_are_reported_and_get_the_most_frequent_tag(bert: Path):
    data = kings()
    outcome = lmtrain("probe", "--model", bert, "--data", data, "-L", 4, "--json")
    assert outcome.code == 0
    assert "rows are cut at --max-length 4" in outcome.err and "words are cut off" in outcome.err
    assert outcome.json["metrics"]["entity_recall"] < 0.9
    assert outcome.json["models"][0]["rows_truncated"]["eval"] > 0


def test_class_labels_of_a_dataset_are_read_by_name():
    import datasets

    tags = datasets.ClassLabel(names=["O", "B-PER"])
    schema = {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tags), "kind": tags}
    rows = {"tokens": [["the", "king"], ["a"]], "ner_tags": [[0, 1], [0]], "kind": [1, -1]}
    Path("named").mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(schema)).to_parquet("named/train.parquet")
    section = LabelledData(train=["named@train"])
    assert load(section.train, section).values == [(["the", "king"], ["O", "B-PER"]), (["a"], ["O"])]
    (_, first), (_, second) = columnar.read_dataset("named", None, "train")
    assert (first["kind"], second["kind"]) == ("B-PER", None)


def test_tags_without_o_are_scored_one_by_one(bert: Path):
    lines = [line.split() for line in sentences(60)]
    data = write_rows("x.jsonl", [{"w": w, "t": ["N" if x in NOUNS else "X" for x in w]} for w in lines])
    found = probe("--model", bert, "--data", data, "--tokens-column", "w", "--tags-column", "t")
    assert found["metrics"] == {"accuracy": 1.0, "macro_f1": 1.0}


COLUMNS = ["--text-column", "text", "--label-column", "label"]
MISTAKES = {
    "no such column": (
        ["--text-column", "text", "--label-column", "lable"],
        3,
        "no column 'lable'; it has text, label; did you mean 'label'?",
    ),
    "half a pair": (["--label-column", "label"], 2, "--text-column and --label-column belong together"),
    "two kinds": ([*COLUMNS, "--tags-column", "label"], 2, "select different kinds of rows"),
    "one label": (["--data", "one.jsonl"], 3, "one.jsonl: all rows have one label, 'a'"),
    "an empty label": (["--data", "empty.jsonl"], 3, "empty.jsonl, line 2, column 'label': is empty"),
    "a label that is no text": (
        ["--data", "list.jsonl"],
        3,
        "list.jsonl, line 1, column 'label': is list [0.5], not text",
    ),
    "no text": (["--data", "blank.jsonl"], 3, "blank.jsonl: no usable text (2 empty rows)"),
    "no such file": (["--data", "tex.jsonl"], 3, "tex.jsonl: no such file"),
    "text without tags": (["--data", "text.txt"], 3, "text.txt, line 1: 'word' is a word without a tag"),
    "a gate on an unknown metric": (["--assert", "acuracy>1"], 2, "no metric 'acuracy'"),
    "a gate on a metric of other data": (
        ["--assert", "entity_f1>0"],
        2,
        "no metric 'entity_f1'; these settings compute accuracy, macro_f1",
    ),
    "no model": (["--model", "nowhere/at/all"], 3, "nowhere/at/all: no such folder"),
    "too long": (["-L", "129"], 2, "--max-length 129"),
    "no word is left": (
        ["--data", "tags.conll", "-L", "2"],
        3,
        "--max-length 2: no word of the training data is left",
    ),
    "nothing held out": (["--val-split", "0"], 2, "--val-split"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_in_one_sentence(mistake: str, bert: Path):
    write_rows("good.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}] * 4)
    write_rows("one.jsonl", [{"text": "x", "label": "a"}] * 4)
    write_rows("empty.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": ""}])
    write_rows("list.jsonl", [{"text": "x", "label": [0.5]}])
    write_rows("blank.jsonl", [{"text": "", "label": "a"}, {"text": " ", "label": "b"}])
    Path("text.txt").write_text("word\n")
    Path("tags.conll").write_text("the O\nking B-PER\n\n" * 4)
    flags, code, message = MISTAKES[mistake]
    data = [] if "--data" in flags else ["--data", "good.jsonl"]
    model = [] if "--model" in flags else ["--model", bert]
    outcome = lmtrain("probe", *model, *data, *flags)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert message in outcome.err.replace("\n", " ")


# --- gates -----------------------------------------------------------------------------------------------------------


def test_failed_gate_is_exit_code_4(bert: Path):
    data = royal()
    outcome = lmtrain(
        "probe",
        "--model",
        bert,
        "--data",
        data,
        "--json",
        "-q",
        "--assert",
        "accuracy>1.5",
        "--assert",
        "baseline.metrics.accuracy<1",
        "--junit",
        "report.xml",
    )
    assert outcome.code == 4
    assert "gate failed: accuracy>1.5 (got 1" in outcome.err
    assert [gate["holds"] for gate in outcome.json["gates"]] == [False, True]
    assert Path("report.xml").exists()
    Path("before.json").write_text(outcome.out)
    assert lmtrain("probe", "--model", bert, "--data", data, "--baseline", "before.json").code == 0
    worse = lmtrain("probe", "--model", bert, "--data", data, "--baseline", "before.json", "--l2", 1e9)
    assert worse.code == 4


def test_keys_of_the_json_output(bert: Path):
    found = probe("--model", bert, "--data", royal())
    assert set(found) == {
        "objective",
        "model",
        "status",
        "metrics",
        "intervals",
        "signatures",
        "baseline",
        "models",
        "eval",
        "data",
        "gates",
        "environment",
    }
    assert (found["objective"], found["model"], found["status"]) == ("probe", str(bert), "completed")
    assert set(found["models"][0]) == {"model", "metrics", "intervals", "signatures", "rows_truncated", "seconds"}
    assert found["data"]["kind"] == "labelled" and found["data"]["labels"] == 2
    assert found["data"]["train"]["rows_used"] == 192 and found["data"]["eval"]["rows_used"] == 48
