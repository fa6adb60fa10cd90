"""What the README tells people to type."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import lmtrain

from lmtrain.recipe import RECIPES, leaves

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
TRAINING = [
    line[line.index("lmtrain ") :]
    for line in LINES
    if re.search(r"(^|&& |-m )lmtrain (clm|mlm|seq2seq|run) ", line) and "RUN/" not in line
]


def test_the_two_commands_are_there():
    assert "pip install . && lmtrain run clm-quickstart" in LINES
    assert "pip install -e '.[test]' && pytest" in LINES


@pytest.mark.parametrize("line", TRAINING)
def test_every_training_command_is_understood(line: str):
    outcome = lmtrain(*shlex.split(line)[1:], "--dry-run")
    assert outcome.code == 0, outcome.err


def test_every_flag_that_is_named_exists():
    shown = "".join(lmtrain(command, "--help").out for command in ("clm", "mlm", "seq2seq"))
    shown += lmtrain("tokenizer", "train", "--help").out
    known = set(re.findall(r"--[a-z][a-z-]+", shown)) | {
        "--" + leaf.flag.replace("_", "-") for recipe in RECIPES.values() for leaf in leaves(recipe)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--nproc-per-node"}
    assert named <= known, named - known


def test_the_exit_codes_are_those_of_the_errors():
    from lmtrain import errors

    table = set(map(int, re.findall(r"^\| (\d+) \|", README, re.MULTILINE)))
    assert {e.exit_code for e in errors.LmtrainError.__subclasses__() if e is not errors.Interrupted} <= table
