"""The recipe of a run names its files by absolute paths, so that it can be run from any folder."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch, trained

from lmtrain.config.data import ClmData, PairData, Split
from lmtrain.config.loading import read_yaml
from lmtrain.data.locations import absolute_data


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The current folder, whose own name has glob characters."""
    here = tmp_path / "a [b]"
    for name in ("rows.jsonl", "corpus/one.jsonl", "corpus/two.jsonl", "x#3.jsonl", "news.de", "spaced name.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text('{"text": "a"}\n')
    (here / "news.en.gz").write_bytes(gzip.compress(b"a\n"))
    return here


CLM, PAIRS = ClmData(train=["x"]), PairData(train=["x"], source_lang="de", target_lang="en")


@pytest.mark.parametrize(
    ("specification", "data", "is_path"),
    [
        ("rows.jsonl", CLM, True),
        ("./rows.jsonl", CLM, True),
        ("rows.jsonl#5", CLM, True),
        ("x#3.jsonl", CLM, True),
        ("x#3.jsonl#2", CLM, True),
        ("spaced name.txt", CLM, True),
        ("corpus", CLM, True),
        ("corpus/", CLM, True),
        ("corpus#1", CLM, True),
        ("corpus@train", CLM, True),
        ("../a [b]/rows.jsonl", CLM, True),
        ("news", PAIRS, True),
        ("news#4", PAIRS, True),
        ("org/name", CLM, False),
        ("org/name:config@split", CLM, False),
        ("org/name#7", CLM, False),
        ("example:python-docs", CLM, False),
        ("example:numbers#9", PAIRS, False),
        ("-", CLM, False),
        ("-#3", CLM, False),
    ],
)
def test_path_of_data_becomes_absolute(
    specification: str, data: Split, is_path: bool, files: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(files)
    expected = str(files / specification.removeprefix("../a [b]/").removeprefix("./").rstrip("/"))
    assert absolute_data(specification, data) == (expected if is_path else specification)
    if is_path:
        assert absolute_data(expected, data) == expected


def test_pattern_matches_the_same_files_from_any_folder(files: Path, monkeypatch: pytest.MonkeyPatch):
    from lmtrain.data.sources import open_tables

    monkeypatch.chdir(files)
    found = [table.files for table in open_tables(["corpus/*.jsonl"], CLM)]
    pattern = absolute_data("corpus/*.jsonl", CLM)
    monkeypatch.chdir("/")
    assert [table.files for table in open_tables([pattern], CLM)] == [
        tuple(files / file for file in group) for group in found
    ]


@pytest.mark.slow
def test_recipe_of_a_run_is_run_evaluated_and_resumed_from_another_folder(
    material: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Path("text.jsonl").write_bytes((material / "text.jsonl").read_bytes())
    Path("model").symlink_to(gpt2)
    trained("clm", "-m", "model", "-d", "text.jsonl#40", "--max-steps", 2, "-o", "run", "--save-every", 1)
    recipe = read_yaml(Path("run/recipe.yaml"))
    assert recipe["model"]["name"] == str(tmp_path / "model")
    assert recipe["data"]["train"] == [str(tmp_path / "text.jsonl#40")]
    first = json_of("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = trained("run", tmp_path / "run/recipe.yaml", "-o", "again")
    assert again["metrics"] == first["metrics"]
    assert lmtrain("eval", "--model", tmp_path / "run", "--json", "-q").json["metrics"] == pytest.approx(
        first["metrics"], rel=1e-6
    )
    resumed = trained(
        "run", tmp_path / "run/recipe.yaml", "-o", tmp_path / "run", "--resume", "auto", "--max-steps", 3
    )
    assert resumed["train"]["steps"] == 3


def json_of(run: str) -> dict[str, Any]:
    import json

    return json.loads(Path(run, "results.json").read_text())


def test_names_of_the_hub_and_of_architectures_stay_as_they_are(material: Path):
    trained("clm", *scratch("gpt2"), "-d", material / "text.jsonl", "--max-steps", 0, "-o", "run")
    model = read_yaml(Path("run/recipe.yaml"))["model"]
    assert (model["name"], model["tokenizer"]) == ("gpt2", "bpe:300")
