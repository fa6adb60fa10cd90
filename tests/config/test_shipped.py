"""The shipped recipes: each is valid, states what to expect, runs, and is in the wheel."""

import re
import zipfile
from pathlib import Path

import pytest
from conftest import lmtrain, trained

from lmtrain.config import shipped

FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
QUICKSTARTS = ["clm-quickstart", "mlm-quickstart", "seq2seq-quickstart"]


def test_recipes_list_shows_every_recipe_file_with_its_first_line():
    assert set(QUICKSTARTS) <= set(NAMES)
    listed = lmtrain("recipes", "list", "--json").json
    assert listed == {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in FILES}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_short_valid_and_states_the_expected_result(name: str):
    text = lmtrain("recipes", "show", name).out
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    source = re.search(r"\((measured|published|not measured)[^()]*\)$", lines[0])
    assert source, "where the figure to expect comes from"
    assert source[1] == "not measured" or re.search(r"\d", lines[0].removesuffix(source[0])), "the figure to expect"
    assert len(lines) <= 30
    assert lmtrain("run", name, "--dry-run").code == 0
    assert lines[1] == f"objective: {name.split('-')[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICKSTARTS)
def test_quickstart_runs_and_lowers_the_loss(name: str):
    results = trained("run", name, "--max-steps", 2, "-o", "run", "--set", "eval.batch_size=64")
    assert results["metrics"]["eval_loss"] < results["initial_metrics"]["eval_loss"]


def test_recipes_copy_does_not_overwrite_a_file():
    assert lmtrain("recipes", "copy", "clm-quickstart").code == 0
    Path("clm-quickstart.yaml").write_text("mine")
    outcome = lmtrain("recipes", "copy", "clm-quickstart")
    assert outcome.code == 2
    assert Path("clm-quickstart.yaml").read_text() == "mine"


def test_wheel_contains_the_recipes():
    from hatchling.builders.wheel import WheelBuilder

    built = next(
        WheelBuilder(str(shipped.PACKAGE.parent)).build(directory=str(Path().absolute()), versions=["standard"])
    )
    names = zipfile.ZipFile(built).namelist()
    assert {f"lmtrain/recipes/{name}.yaml" for name in NAMES} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
