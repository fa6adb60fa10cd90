"""The rows of the data are read by one process of a group, and what it makes of them is shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import scratch

COUNTING = """
import atexit, builtins, os, sys
original, counted = builtins.__import__, [0]

def importing(*arguments, **options):
    module = original(*arguments, **options)
    reader = getattr(sys.modules.get("lmtrain.data.reading"), "RowReader", None)
    if reader and not hasattr(reader, "counting"):
        rows, reader.counting = reader.rows, True

        def counting(self, *given):
            for row in rows(self, *given):
                counted[0] += 1
                yield row

        reader.rows = counting
    return module

builtins.__import__ = importing
atexit.register(lambda: open(f"rows-{os.getpid()}", "w").write(str(counted[0])) if counted[0] else None)
"""
ROWS, HELD_OUT, CHUNK = 300, 20, 50


def rows_read(*flags: object) -> int:
    """The rows that all processes of a run have read."""
    for old in Path().glob("rows-*"):
        old.unlink()
    command = [
        "clm",
        *scratch("gpt2"),
        "--data",
        "train.jsonl",
        "--eval-data",
        "eval.jsonl",
        "--max-steps",
        "5",
        "-b",
        "4",
    ]
    path = os.pathsep.join(["site", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", *map(str, [*command, *flags]), "--overwrite", "-o", "run"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sum(int(file.read_text()) for file in Path().glob("rows-*"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--no-cache"], ["--streaming", "--shuffle-buffer", CHUNK]])
def test_the_processes_of_a_group_read_every_row_once(flags: list[object], tmp_path: Path):
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(COUNTING)
    for name, count in (("train", ROWS), ("eval", HELD_OUT)):
        rows = (json.dumps({"text": f"row {number} of {name} says {number * 7}"}) + "\n" for number in range(count))
        Path(f"{name}.jsonl").write_text("".join(rows))
    tokenizer = ["--tokenizer", "byte"]  # one that is trained reads the rows as well
    found = rows_read("--num-processes", 2, *tokenizer, *flags)
    if "--streaming" in flags:
        assert found == rows_read(*tokenizer, *flags, "--grad-accum", 2)
    else:
        assert found == ROWS + HELD_OUT
