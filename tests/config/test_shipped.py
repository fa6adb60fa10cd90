"""The shipped recipes: all build, say what they are, run, and come in the wheel."""

import re
import zipfile
from pathlib import Path

import pytest
from conftest import lmtrain, trained

from lmtrain.config import shipped
from lmtrain.data.builtin import english, korean

NAMES = [path.stem for path in shipped.shipped()]
QUICKSTARTS = ["clm-quickstart", "mlm-quickstart", "seq2seq-quickstart"]


def test_there_are_the_three_quickstarts():
    assert set(QUICKSTARTS) <= set(NAMES)
    listed = lmtrain("recipes", "list", "--json").json
    assert set(listed) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_says_what_it_is(name: str):
    text = lmtrain("recipes", "show", name).out
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    source = re.search(r"\((measured|published|not measured)[^()]*\)$", lines[0])
    assert source, "where the figure to expect comes from"
    assert source[1] == "not measured" or re.search(r"\d", lines[0].removesuffix(source[0])), "the figure to expect"
    assert len(lines) <= 30
    assert lmtrain("run", name, "--dry-run").code == 0
    assert lines[1] == f"objective: {name.split('-')[0]}"


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_a_quickstart_runs(name: str):
    results = trained("run", name, "--max-steps", 2, "-o", "run", "--set", "eval.batch_size=64")
    assert results["metrics"]["eval_loss"] < results["initial_metrics"]["eval_loss"]


def test_a_recipe_is_copied_but_nothing_is_overwritten():
    assert lmtrain("recipes", "copy", "clm-quickstart").code == 0
    Path("clm-quickstart.yaml").write_text("mine")
    outcome = lmtrain("recipes", "copy", "clm-quickstart")
    assert outcome.code == 2
    assert Path("clm-quickstart.yaml").read_text() == "mine"


def test_the_wheel_brings_the_recipes():
    from hatchling.builders.wheel import WheelBuilder

    built = next(WheelBuilder(str(shipped.PACKAGE.parent)).build(directory=str(Path().absolute()), versions=["standard"]))
    names = zipfile.ZipFile(built).namelist()
    assert {f"lmtrain/recipes/{name}.yaml" for name in NAMES} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


@pytest.mark.parametrize(
    ("number", "in_english", "in_korean"),
    [(1, "one", "일"), (10, "ten", "십"), (11, "eleven", "십일"), (342, "three hundred forty-two", "삼백사십이"),
     (1000, "one thousand", "천"), (10_000, "ten thousand", "만"), (110_011, "one hundred ten thousand eleven", "십일만 십일"),
     (37_025, "thirty-seven thousand twenty-five", "삼만 칠천이십오")],
)  # fmt: skip
def test_numbers_in_words(number: int, in_english: str, in_korean: str):
    assert english(number) == in_english
    assert korean(number) == in_korean
