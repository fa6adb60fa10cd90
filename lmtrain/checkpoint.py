"""Which checkpoint a run goes on from."""

import json
import re
from pathlib import Path
from zipfile import is_zipfile

from lmtrain.architectures import cut_off
from lmtrain.errors import InputError
from lmtrain.report import RunFolder

NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def to_resume(resume: str | None, folder: RunFolder, also: tuple[str, ...] = ()) -> tuple[Path | None, list[str]]:
    """(the checkpoint that `--resume` means, what to say about others); None where there is nothing to go on from.

    `also` names files that this run needs in it.

    `auto` passes over a checkpoint that a cut save left damaged. Raises InputError for a named one that is not whole.
    """
    if resume is None:
        return None, []
    if resume != "auto":
        path = Path(resume)
        if damage := _damage(path, also):
            raise InputError(f"{path}: not a whole checkpoint: {damage}; --resume auto takes the newest whole one")
        return path, []
    found = sorted(folder.checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)
    passed = []
    for path in found:
        if damage := _damage(path, also):
            passed.append(f"passing over {path.name}: {damage}")
        else:
            return path, passed
    return None, [*passed, "no whole checkpoint to go on from: starting anew"]


def step_of(path: Path) -> int:
    """The step at which a checkpoint was saved; -1 where its name does not say."""
    number = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(number[1]) if number else -1


def _damage(path: Path, also: tuple[str, ...]) -> str | None:
    """What is wrong with a checkpoint, as far as its files show it; None for a whole one."""
    if not any(path.glob("*.safetensors")):
        return "model.safetensors is missing"
    if not any(path.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    for name in (*NEEDED, *also):
        if not (path / name).is_file() or not (path / name).stat().st_size:
            return f"{name} is missing or empty"
    for file in (*path.glob("*.pt"), *path.glob("rng_state*.pth")):
        if not is_zipfile(file):  # as torch writes it; one that was cut off, or a bare pickle, is none
            return f"{file.name} is damaged"
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return "trainer_state.json is damaged"
    return next((f"{file.name}: {damage}" for file in path.glob("*.safetensors") if (damage := cut_off(file))), None)
