"""Which checkpoint a run goes on from."""

import re
from pathlib import Path

from lmtrain.errors import InputError
from lmtrain.report import RunFolder

NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def to_resume(resume: str | None, folder: RunFolder) -> Path | None:
    """The checkpoint that `--resume` means; None where there is nothing to go on from.

    `auto` passes over a checkpoint that lacks a file, which a cut save leaves behind. Raises InputError for a named
    one that is not whole.
    """
    if resume is None:
        return None
    if resume != "auto":
        path = Path(resume)
        lacking = _lacking(path)
        if lacking:
            raise InputError(f"{path}: not a whole checkpoint, {lacking} is missing")
        return path
    found = sorted(folder.checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)
    return next((path for path in found if not _lacking(path)), None)


def step_of(path: Path) -> int:
    """The step at which a checkpoint was saved; -1 where its name does not say."""
    number = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(number[1]) if number else -1


def _lacking(path: Path) -> str | None:
    if not any(path.glob("*.safetensors")):
        return "model.safetensors"
    if not any(path.glob("rng_state*.pth")):
        return "rng_state.pth"
    return next((name for name in NEEDED if not (path / name).is_file()), None)
