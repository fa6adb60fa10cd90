"""A JSON file may hold the splits of a data set: training reads one, evaluation another, and the rest is named."""

import json
from pathlib import Path

import pytest

from lmtrain.config.data import ClmData
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.locations import absolute_data
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

ROWS = {"train": [["a", "x"], ["b", "y"]], "val": [["c", "x"]], "test": [["d", "y"]], "oos_train": [["e", "z"]]}
OBJECTS = {name: [{"text": text, "label": label} for text, label in rows] for name, rows in ROWS.items()}


def load(name: str, split: str = "train", data: type = LabelledData, **options: object) -> Rows:
    return reading.load([name], data(train=["x"], **options), split)


def write(content: object, name: str = "a.json") -> None:
    Path(name).write_text(json.dumps(content))


@pytest.mark.parametrize("content", [ROWS, OBJECTS], ids=["lists", "objects"])
@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("a.json", "train", [("a", "x"), ("b", "y")]),
        ("a.json", "validation", [("c", "x")]),
        ("a.json@test", "train", [("d", "y")]),
        ("a.json@oos_train", "train", [("e", "z")]),
        ("a.json@validation", "train", [("c", "x")]),
        ("a.json@train#1", "train", [("a", "x")]),
    ],
)
def test_one_split_is_read(content: dict, name: str, split: str, expected: list):
    write(content)
    rows = load(name, split, columns=["text", "label"] if content is ROWS else [])
    assert rows.values == expected and rows.location(0) == "a.json, row 1"


def test_the_splits_that_are_not_read_are_named():
    write(OBJECTS)
    assert "a.json: the split train is read, not val, test, oos_train (a.json@val names one)" in load("a.json").notes


def test_lists_without_names_are_refused_with_the_flag():
    write(ROWS)
    with pytest.raises(InputError, match=r"^a.json, row 1: a row must be an object .* e.g. --columns text,label"):
        load("a.json")
    with pytest.raises(InputError, match=r"^a.json, row 1: has 2 values, but --columns names 1"):
        load("a.json", columns=["text"])
    write([["a", "x"], ["b", "y"]], "b.json")
    Path("b.jsonl").write_text('["a", "x"]\n["b", "y"]\n')
    for name in ("b.json", "b.jsonl"):
        assert load(name, columns=["text", "label"]).values == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.json@other", "a.json: has no split 'other'; it has train, val, test, oos_train"),
        ("b.jsonl@train", "b.jsonl: holds no splits; name it without @train"),
    ],
)
def test_a_split_that_is_not_there_is_refused(name: str, message: str):
    write(OBJECTS)
    Path("b.jsonl").write_text('{"text": "a", "label": "x"}\n')
    with pytest.raises(InputError, match=f"^{message}"):
        load(name)


def test_an_object_of_other_lists_is_a_row():
    write({"text": "one row", "train": ["steam", "diesel"], "test": [1]})
    assert load("a.json", data=ClmData).values == ["one row"]


def test_the_recipe_of_a_run_names_the_split():
    write(OBJECTS)
    assert absolute_data("a.json@test", LabelledData(train=["x"])) == f"{Path('a.json').absolute()}@test"
