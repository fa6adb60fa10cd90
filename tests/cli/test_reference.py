"""The reference and the schema follow the declarations."""

import json
import re

import pytest
from conftest import lmtrain
from jsonschema import Draft202012Validator

from lmtrain.cli import reference
from lmtrain.config import shipped
from lmtrain.config.loading import read_yaml
from lmtrain.config.recipe import RECIPES


def test_the_committed_files_are_up_to_date():
    """If not: python -m lmtrain.cli.reference."""
    assert json.loads(reference.SCHEMA.read_text(encoding="utf-8")) == reference.schema()
    assert reference.REFERENCE.read_text(encoding="utf-8") == reference.reference()


def test_the_reference_has_the_rows_of_known_keys():
    """Key, alias, flag, type and default, written by hand."""
    rows = reference.REFERENCE.read_text(encoding="utf-8").splitlines()
    for start in (
        "| `max_length` (block_size, max_seq_length) | `--max-length` | whole number |  | *clm, mlm:* ",
        "| `mask_probability` (mlm_probability) | `--mask-probability` | number | 0.15 | *mlm:* ",
        "| `learning_rate` (lr) | `--learning-rate` | number |  | ",
        "| `batch_size` (per_device_train_batch_size) | `--batch-size` | whole number | 8 | ",
    ):
        assert [row for row in rows if row.startswith(start)], start


@pytest.mark.parametrize("objective", RECIPES)
def test_the_reference_names_every_flag_of_the_help(objective: str):
    """The committed file against what the command line prints."""
    named = set(re.findall(r"`(--[a-z0-9-]+)`", reference.REFERENCE.read_text(encoding="utf-8")))
    printed = set(re.findall(r"--[a-z][a-z0-9-]+", lmtrain(objective, "--help").out))
    own = {"--help", "--json", "--quiet", "--config", "--dry-run", "--set"}
    negated = {f"--no-{flag.removeprefix('--')}" for flag in named}
    assert {flag for flag in printed - named - negated - own} == set()
    assert len(printed & named) > 30


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = reference.schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", shipped.shipped(), ids=lambda path: path.stem)
def test_the_shipped_recipes_match_the_schema(path, validator: Draft202012Validator):
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
def test_the_schema_rejects_recipes_that_a_run_refuses(document: dict, validator: Draft202012Validator):
    assert list(validator.iter_errors(document))


def test_the_schema_accepts_flat_keys_aliases_and_lists_of_gates(validator: Draft202012Validator):
    document = {
        "objective": "clm",
        "model": "gpt2",
        "data": ["a.txt"],
        "lr": 1e-4,
        "max_time": "30m",
        "gates": ["perplexity<25"],
        "train": {"adam_beta2": 0.98},
    }
    assert list(validator.iter_errors(document)) == []
