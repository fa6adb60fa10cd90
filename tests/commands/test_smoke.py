"""`--smoke`: every shipped recipe runs offline, and models and data are replaced as documented."""

import json
from pathlib import Path

import pytest
from conftest import lmtrain
from ruamel.yaml import YAML

from lmtrain.commands.smoke import architecture_of
from lmtrain.config import shipped


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in shipped.shipped()])
def test_every_shipped_recipe_runs(name: str):
    outcome = lmtrain("recipes", "test", name, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    tried = outcome.json[name]
    assert tried["failed"] is None and tried["metrics"]["eval_loss"] > 0
    assert not list(Path().iterdir()), "nothing is left behind"


def recipe(**sections: object) -> str:
    YAML(typ="safe").dump(sections, Path("my.yaml"))
    return "my.yaml"


def test_architecture_columns_and_settings_stay():
    path = recipe(
        objective="seq2seq",
        model="google/mt5-small",
        train={"grad_accum": 4, "label_smoothing": 0.1},
        gates=["bleu>90"],
        data={"train": "org/nowhere", "source_column": "q: {a.b} c: {c}", "target_column": "answers.text"},
    )
    outcome = lmtrain("run", path, "--smoke", "-o", "run")
    assert outcome.code == 0, outcome.err
    notes = outcome.err.replace("\n", " ")
    assert "a small mt5 with random weights replaces google/mt5-small" in notes and "smoke: it runs" in notes
    assert json.loads(Path("run/config.json").read_text())["model_type"] == "mt5"
    saved = YAML(typ="safe").load(Path("run/recipe.yaml"))
    assert saved["data"]["source_column"] == "q: {a.b} c: {c}" and saved["train"]["label_smoothing"] == 0.1
    assert saved["train"]["max_steps"] == 4 and saved["train"]["grad_accum"] == 2


def test_local_data_are_used(material: Path):
    path = recipe(objective="clm", model="openai-community/gpt2", data={"train": str(material / "prompts.jsonl")})
    outcome = lmtrain("run", path, "--smoke", "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "'question' and 'answer'" in outcome.err.replace("\n", " ")
    Path("broken.jsonl").write_text('{"txt": 1}\n')
    outcome = lmtrain("run", recipe(objective="clm", model="openai-community/gpt2", data="broken.jsonl"), "--smoke")
    assert outcome.code == 3 and "broken.jsonl" in outcome.err


def test_one_broken_recipe_does_not_stop_the_others():
    Path("good.yaml").write_text("objective: mlm\nmodel: google-bert/bert-base-cased\ndata: org/nowhere\n")
    Path("bad.yaml").write_text("objective: mlm\nmodel: google-bert/bert-base-cased\ndata: org/nowhere\nepoch: 2\n")
    Path("worse.yaml").write_text("objective: clm\nmodel: google-bert/bert-base-cased\ndata: org/nowhere\n")
    outcome = lmtrain("recipes", "test", "bad.yaml", "worse.yaml", "good.yaml", "--json")
    assert outcome.code == 4 and "2 of 3 recipes fail: bad, worse" in outcome.err.replace("\n", " ")
    assert "epoch: no such key" in outcome.json["bad"]["failed"]
    assert outcome.json["good"]["failed"] is None


@pytest.mark.parametrize(
    ("name", "objective", "architecture"),
    [
        ("openai-community/gpt2", "clm", "gpt2"),
        ("Qwen/Qwen3-0.6B", "clm", "qwen3"),
        ("HuggingFaceTB/SmolLM2-135M", "clm", "llama"),
        ("EleutherAI/pythia-160m", "clm", "gpt_neox"),
        ("klue/roberta-base", "mlm", "roberta"),
        ("FacebookAI/xlm-roberta-base", "mlm", "xlm-roberta"),
        ("microsoft/deberta-v3-small", "mlm", "deberta-v2"),
        ("answerdotai/ModernBERT-base", "mlm", "modernbert"),
        ("distilbert/distilbert-base-uncased", "mlm", "distilbert"),
        ("google-t5/t5-small", "seq2seq", "t5"),
        ("google/flan-t5-base", "seq2seq", "t5"),
        ("google/mt5-small", "seq2seq", "mt5"),
        ("facebook/bart-large", "seq2seq", "bart"),
        ("facebook/mbart-large-50", "seq2seq", "mbart"),
        ("Helsinki-NLP/opus-mt-en-de", "seq2seq", "marian"),
        ("facebook/nllb-200-distilled-600M", "seq2seq", "m2m_100"),
    ],
)
def test_architecture_is_found_by_name(name: str, objective: str, architecture: str):
    assert architecture_of(name, objective) == architecture


def test_name_without_a_known_architecture_is_refused():
    outcome = lmtrain("run", recipe(objective="clm", model="org/thing", data="org/nowhere"), "--smoke")
    assert outcome.code == 3 and "does not tell its architecture" in outcome.err.replace("\n", " ")
