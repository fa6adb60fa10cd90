"""The reference and the schema are what the declarations say."""

import json

import pytest
from jsonschema import Draft202012Validator

from lmtrain.cli import reference
from lmtrain.config import shipped
from lmtrain.config.loading import read_yaml
from lmtrain.config.options import leaves
from lmtrain.config.recipe import RECIPES


def test_the_committed_files_are_up_to_date():
    """If not: python -m lmtrain.cli.reference."""
    assert json.loads(reference.SCHEMA.read_text(encoding="utf-8")) == reference.schema()
    assert reference.REFERENCE.read_text(encoding="utf-8") == reference.reference()


def test_every_key_and_flag_is_in_the_reference():
    text = reference.reference()
    for leaf in (leaf for recipe_class in RECIPES.values() for leaf in leaves(recipe_class)):
        assert f"| `{leaf.name}`" in text and f"`--{leaf.flag.replace('_', '-')}`" in text


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = reference.schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", shipped.shipped(), ids=lambda path: path.stem)
def test_the_shipped_recipes_fulfil_the_schema(path, validator: Draft202012Validator):
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    "document",
    [
        {"objective": "clm", "model": "gpt2", "data": "a.txt", "mask_probability": 0.2},
        {"objective": "mlm", "model": "bert", "data": {"train": "a.txt", "max_lenght": 8}},
        {"objective": "clm", "model": "gpt2", "data": "a.txt", "train": {"batch_size": 0}},
        {"objective": "clm", "model": {"name": "gpt2", "trust_remote_code": True}, "data": "a.txt"},
        {"model": "gpt2", "data": "a.txt"},
        {"objective": "rl"},
    ],
)
def test_the_schema_refuses_what_a_run_would_refuse(document: dict, validator: Draft202012Validator):
    assert list(validator.iter_errors(document))


def test_the_schema_takes_flat_keys_aliases_and_lists_of_gates(validator: Draft202012Validator):
    document = {
        "objective": "clm", "model": "gpt2", "data": ["a.txt"], "lr": 1e-4, "max_time": "30m", "gates": ["perplexity<25"],
        "train": {"adam_beta2": 0.98},
    }  # fmt: skip
    assert list(validator.iter_errors(document)) == []
