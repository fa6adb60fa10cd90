"""Which model types exist, and what each was made for."""

import json
from pathlib import Path

import pytest
from conftest import lmtrain

from lmtrain.config.architectures import OWN, TABLES, made_for, model_table

MADE_FOR = {
    "clm": "gpt2 llama qwen3 opt gemma3_text",
    "mlm": "bert roberta modernbert deberta-v2 electra",
    "seq2seq": "t5 bart marian pegasus prophetnet",
    None: "vit",
}


@pytest.mark.parametrize("objective", MADE_FOR)
def test_each_model_type_has_one_objective(objective: str | None):
    assert {made_for(family) for family in MADE_FOR[objective].split()} == {objective}


def test_tables_read_from_source_match_transformers():
    from transformers.models.auto import modeling_auto

    for name, _ in TABLES.values():
        assert model_table(name) == dict(getattr(modeling_auto, name)) | OWN.get(name, {})


@pytest.mark.parametrize(
    ("wrong", "model", "right"),
    [("mlm", "gpt2", "clm"), ("clm", "bert", "mlm"), ("clm", "t5", "seq2seq"), ("seq2seq", "gpt2", "clm")],
)
def test_wrong_objective_error_names_the_right_one(
    wrong: str, model: str, right: str, material: Path, request: pytest.FixtureRequest
):
    data = material / ("pairs.jsonl" if wrong == "seq2seq" else "text.jsonl")
    outcome = lmtrain(wrong, "--model", request.getfixturevalue(model), "--data", data)
    assert outcome.code == 3
    assert f"use lmtrain {right}" in outcome.err.replace("\n", " ")


@pytest.mark.parametrize("name", ["transfo-xl", "xlm-prophetnet"])
def test_architectures_removed_from_transformers_are_named(name: str, material: Path):
    objective = "clm" if name == "transfo-xl" else "seq2seq"
    data = material / ("text.jsonl" if objective == "clm" else "pairs.jsonl")
    outcome = lmtrain(objective, "--model", name, "--from-scratch", "--tokenizer", "char", "--data", data)
    assert outcome.code == 3 and f"{name}: transformers 5 removed this architecture" in outcome.err.replace("\n", " ")
    Path("old").mkdir()
    Path("old/config.json").write_text(json.dumps({"model_type": name}))
    outcome = lmtrain(objective, "--model", "old", "--data", data)
    assert outcome.code == 3 and "removed this architecture" in outcome.err.replace("\n", " ")
