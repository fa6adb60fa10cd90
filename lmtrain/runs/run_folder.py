"""The run folder: what is in it, when it may be written, and the model card."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from lmtrain.config.architectures import check_path
from lmtrain.config.loading import read_yaml, to_yaml
from lmtrain.config.recipe import Recipe
from lmtrain.config.train import Run
from lmtrain.errors import StorageError, UsageError
from lmtrain.runs.file_names import METRICS, MODEL_ASIDE, PARTS, PREDICTIONS, RECIPE, RESULTS, SAMPLES
from lmtrain.runs.lock import LOCK
from lmtrain.runs.model_card import card
from lmtrain.runtime.console import to_json
from lmtrain.runtime.files import storage_error, sync, write_text
from lmtrain.runtime.redaction import in_document

RESOLVED = ("max_length", "max_source_length", "max_target_length")
"""Lengths that a saved recipe says even if they were not given."""


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def command(self, more: str = "") -> str:
        """What to type for the same run once more."""
        return f"lmtrain run {self.path / RECIPE} {more}".strip()

    def create(self, recipe: Recipe, overwrite: bool, lengths: dict[str, int]) -> None:
        """Make the folder and write the recipe with the `lengths` that were resolved.

        With `overwrite`, what an earlier run wrote is removed first.

        Only what a run writes is touched, whatever else lies there. Raises StorageError.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                for name in (
                    RESULTS,
                    METRICS,
                    SAMPLES,
                    PREDICTIONS,
                    "README.md",
                    "*config.json",
                    "tokenizer*",
                    "*.safetensors*",
                ):
                    for written in self.path.glob(name):
                        written.unlink()
            for part in self.path.glob(PARTS):  # of a run that was killed while it wrote
                part.unlink()
            # By its recipe the folder is known as a run, so it is there before all else.
            write_text(self.path / RECIPE, to_yaml(recipe.saved(lengths)))
            self.checkpoints.mkdir(exist_ok=True)
            if before := finished(self):  # a run that goes on is not a completed one, whatever becomes of it
                write_text(self.path / RESULTS, to_json({**before, "status": "interrupted"}))
        except OSError as error:
            raise storage_error(self.path, error) from None

    def append(self, name: str, document: dict[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(to_json(in_document(document)) + "\n")
            stream.flush()

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run says it again."""
        for name in (METRICS, SAMPLES):
            path = self.path / name
            if path.exists():
                lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
                write_text(path, "".join(line + "\n" for line in lines))

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A folder for the model's files, each of which takes its place whole when the block ends."""
        folder = self.path / MODEL_ASIDE
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            yield folder
            files = [file for file in folder.rglob("*") if file.is_file()]
            for file in files:
                sync(file)
            for file in files:
                place = self.path / file.relative_to(folder)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
            sync(self.path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, results: dict[str, Any]) -> None:
        """Write the card and the results, these last: a run with results is one of which nothing is missing."""
        write_text(self.path / "README.md", card(results, self.command()))
        write_text(self.path / RESULTS, to_json(results, indent=2) + "\n")


def _step(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except ValueError:
        return 1 << 62  # a line that was cut off when the run died


def place(run: Run, objective: str, model: str) -> RunFolder:
    """Where this run goes. Raises UsageError for what cannot be a run folder, or has nothing to go on from."""
    if run.resume and run.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite replaces it; give one of the two")
    if run.resume and run.resume != "auto":
        checkpoint = Path(run.resume)
        if not (checkpoint / "trainer_state.json").is_file():
            raise UsageError(f"--resume {run.resume}: no checkpoint there; give a folder checkpoint-N, or auto")
        if run.output_dir is None:
            return RunFolder(checkpoint.resolve().parent.parent)
    if run.resume and not run.output_dir:
        raise UsageError("--resume auto looks in --output-dir; say which run to go on with")
    if run.output_dir is None:
        name = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "model"
        path = Path("runs") / f"{objective}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        again = (path.with_name(f"{path.name}-{os.getpid()}-{number}") for number in count(2))
        return RunFolder(next(free for free in chain([path], again) if not free.exists()))
    check_path(run.output_dir, "--output-dir")
    path = Path(run.output_dir)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output-dir {path}: a file; name a folder")
    return RunFolder(path)


def check_free(folder: RunFolder, run: Run) -> None:
    """Raise UsageError for a folder that holds a run and neither --resume nor --overwrite, or anything but a run."""
    path = folder.path
    unfinished = {LOCK, MODEL_ASIDE, *(part.name for part in path.glob(PARTS))}
    used = path.is_dir() and any(inside.name not in unfinished for inside in path.iterdir())
    if used and not (run.overwrite or run.resume):
        raise UsageError(f"--output-dir {path} is not empty; go on with --resume auto, replace with --overwrite, "
                         "or name another folder")  # fmt: skip
    if used and not (path / RECIPE).exists():
        raise UsageError(f"--output-dir {path}: not a run of lmtrain, so nothing in it will be touched; name another")


def check_room(folder: RunFolder, checkpoint: int, keep: int) -> None:
    """Raise StorageError where the disk has no room for what is kept: checkpoints of about so many bytes, and the model."""
    there = _existing(folder.path)
    written = sum(file.stat().st_size for file in folder.checkpoints.rglob("*") if file.is_file())
    needed, free = (keep + 2) * checkpoint, shutil.disk_usage(there).free + written
    if free < needed:
        raise StorageError(f"{there}: {free / 1e6:,.0f} MB are free, and {keep + 2} checkpoints of {checkpoint / 1e6:,.0f} "
                           "MB (those of --keep, the one being written, the model) need more; free some space, lower "
                           "--keep or choose another --output-dir")  # fmt: skip


def _existing(path: Path) -> Path:
    """The folder, or the one that it will be made in."""
    while not path.exists():
        path = path.parent
    return path


def check_writable(folder: RunFolder) -> None:
    """Raise StorageError before hours of work where the folder, or the one it will be made in, cannot be written."""
    there = _existing(folder.path)
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{there}: no permission to write there; choose another --output-dir")


def check_can_be_written(file: str | None, flag: str) -> None:
    """Raise UsageError for a file in a folder that is not there, before the work rather than after it."""
    if file and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
        raise UsageError(f"{flag} {file}: no such folder to write it in" if not Path(file).is_dir() else
                         f"{flag} {file}: a folder; name a file")  # fmt: skip


def finished(folder: RunFolder) -> dict[str, Any] | None:
    """The results of a run that has been completed, else None."""
    path = folder.path / RESULTS
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return results if results.get("status") == "completed" else None


ENDS = ("epochs", "max_steps", "max_time")
"""Settings of training that say when it ends."""


def ends_otherwise(folder: RunFolder, recipe: Any) -> bool:
    """Whether `recipe` is to end at another step than the run in the folder."""
    before, now = read_yaml(folder.path / RECIPE).get("train", {}), recipe.saved({})["train"]
    return any(before.get(name) != now.get(name) for name in ENDS)
