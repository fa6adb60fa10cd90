"""A training starts with settings of malloc that must be there when the process starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.runtime.heap import SETTINGS, TUNABLES

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or Path("/proc/driver/nvidia").exists()
    or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"),
    reason="only for CPUs under Linux with glibc",
)

PRINT_ENVIRONMENT = (
    "import os, lmtrain.cli.app as app; app.app = lambda **_: print(os.environ.get('GLIBC_TUNABLES', 'none'))"
)


def started(*arguments: str, **variables: str) -> str:
    """What the environment of the command is; it does nothing else, by a module that Python imports at its start."""
    Path("sitecustomize.py").write_text(PRINT_ENVIRONMENT)
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", *arguments],
        env={**environment, "PYTHONPATH": str(Path.cwd()), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@glibc
@pytest.mark.parametrize("command", ["clm", "mlm", "seq2seq", "run", "bench"])
def test_training_starts_with_a_compact_heap(command: str):
    assert started(command, "--model", "gpt2") == SETTINGS


def test_other_commands_and_help_start_as_they_are():
    assert started("eval", "--model", "gpt2") == "none"
    assert started("clm", "--help") == "none"


def test_settings_of_the_user_stay():
    assert started("clm", GLIBC_TUNABLES="glibc.malloc.check=0") == "glibc.malloc.check=0"


@glibc
def test_standard_input_survives_the_start():
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", "clm", "--model", "gpt2", "--data", "-", "--max-steps", "1"],
        input="the cat sees the dog\n",
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != TUNABLES} | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert "too little to hold a part out" in done.stderr, "one line was read; none would be no usable text"
