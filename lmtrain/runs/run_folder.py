"""The run folder: its files, and the checks before anything is written to it."""

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
from lmtrain.runs.file_names import (
    CARD,
    METRICS,
    MODEL_ASIDE,
    PARTS,
    PREDICTIONS,
    RECIPE,
    REPORT,
    RESULTS,
    SAMPLES,
)
from lmtrain.runs.lock import LOCK
from lmtrain.runs.model_card import card
from lmtrain.runs.report import report
from lmtrain.runtime.console import to_json
from lmtrain.runtime.files import replace, share, storage_error, sync, write_text
from lmtrain.runtime.redaction import redact_document


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and how its files are written."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def command(self, more: str = "") -> str:
        """The command that repeats the run."""
        return f"lmtrain run {self.path / RECIPE} {more}".strip()

    def create(self, recipe: Recipe, overwrite: bool, lengths: dict[str, int]) -> None:
        """Create the folder and save the recipe with the resolved maximum `lengths`.

        With `overwrite`, the files of an earlier run are removed first, and no others. Raises StorageError.
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
                    CARD,
                    REPORT,
                    "*config.json",
                    "tokenizer*",
                    "*.safetensors*",
                ):
                    for written in self.path.glob(name):
                        written.unlink()
            for part in self.path.glob(PARTS):  # left by a run that was killed while writing
                part.unlink()
            # The recipe marks the folder as a run, so it is written first.
            write_text(self.path / RECIPE, to_yaml(recipe.saved(lengths)))
            self.checkpoints.mkdir(exist_ok=True)
            if before := completed_results(self):  # a resumed run is not completed until it ends
                write_text(self.path / RESULTS, to_json({**before, "status": "interrupted"}))
        except OSError as error:
            raise storage_error(self.path, error) from None

    def append(self, name: str, document: dict[str, Any]) -> None:
        """Append a JSON line to a log file."""
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(to_json(redact_document(document)) + "\n")
            stream.flush()

    def rewind(self, step: int) -> None:
        """Remove log lines after `step`, which a resumed run writes again."""
        for name in (METRICS, SAMPLES):
            path = self.path / name
            if path.exists():
                lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
                write_text(path, "".join(line + "\n" for line in lines))

    @contextmanager
    def model_files(self) -> Iterator[Path]:
        """A temporary folder for the model's files; when the block ends, each replaces its counterpart atomically."""
        folder = self.path / MODEL_ASIDE
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            yield folder
            share(folder)
            files = [file for file in folder.rglob("*") if file.is_file()]
            for file in files:
                sync(file)
            for file in files:
                place = self.path / file.relative_to(folder)
                place.parent.mkdir(exist_ok=True)
                replace(file, place)
            sync(self.path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, results: dict[str, Any]) -> None:
        """Write the model card and the report, then the results: a run that has results.json is complete."""
        results = redact_document(results)
        if "settings" in results:  # not in those of an earlier version
            write_text(self.path / CARD, card(results, self.path.resolve().name))
            write_text(self.path / REPORT, report(self.path, results))
        write_text(self.path / RESULTS, to_json(results, indent=2) + "\n")


def _step(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except ValueError:
        return 1 << 62  # the line was cut off when the run died


def choose_folder(run: Run, objective: str, model: str) -> RunFolder:
    """The folder of a run. Raises UsageError if it cannot be one, or if the checkpoint to resume from is missing."""
    if run.resume and run.overwrite:
        raise UsageError("--resume continues a run, --overwrite replaces it; give one of the two")
    if run.resume and run.resume != "auto":
        checkpoint = Path(run.resume)
        if not (checkpoint / "trainer_state.json").is_file():
            raise UsageError(f"--resume {run.resume}: not a checkpoint; give a folder checkpoint-N, or auto")
        if run.output_dir is None:
            return RunFolder(checkpoint.resolve().parent.parent)
    if run.resume and not run.output_dir:
        raise UsageError("--resume auto needs --output-dir, the folder of the run to resume")
    if run.output_dir is None:
        name = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "model"
        path = Path("runs") / f"{objective}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        others = (path.with_name(f"{path.name}-{os.getpid()}-{number}") for number in count(2))
        return RunFolder(next(free for free in chain([path], others) if not free.exists()))
    check_path(run.output_dir, "--output-dir")
    path = Path(run.output_dir)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output-dir {path}: a file; name a folder")
    return RunFolder(path)


def check_unused(folder: RunFolder, run: Run) -> None:
    """Raise UsageError if the folder holds a run without --resume or --overwrite, or holds other files."""
    path = folder.path
    unfinished = {LOCK, MODEL_ASIDE, *(part.name for part in path.glob(PARTS))}
    used = path.is_dir() and any(inside.name not in unfinished for inside in path.iterdir())
    if used and not (run.overwrite or run.resume):
        raise UsageError(
            f"--output-dir {path} is not empty; continue with --resume auto, replace it with --overwrite, or choose "
            "another folder"
        )
    if used and not (path / RECIPE).exists():
        raise UsageError(f"--output-dir {path}: not a run of lmtrain, so it is left unchanged; choose another folder")


def check_disk_space(folder: RunFolder, checkpoint_bytes: int, keep: int) -> None:
    """Raise StorageError if the disk has too little space for the checkpoints that are kept, and the model."""
    existing = _existing_parent(folder.path)
    written = sum(file.stat().st_size for file in folder.checkpoints.rglob("*") if file.is_file())
    needed, free = (keep + 2) * checkpoint_bytes, shutil.disk_usage(existing).free + written
    if free < needed:
        raise StorageError(
            f"{existing}: {free / 1e6:,.0f} MB free, but the run needs space for {keep + 2} checkpoints of "
            f"{checkpoint_bytes / 1e6:,.0f} MB (--keep, the one being written and the model); free some space, lower "
            "--keep or choose another --output-dir"
        )


def _existing_parent(path: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def check_writable(folder: RunFolder) -> None:
    """Raise StorageError if there is no permission to write to the folder or, before it exists, to its parent."""
    existing = _existing_parent(folder.path)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{existing}: no permission to write here; choose another --output-dir")


def check_output_file(file: str | None, flag: str) -> None:
    """Raise UsageError, before the work starts, if `file` is a folder or its folder is missing."""
    if file and Path(file).is_dir():
        raise UsageError(f"{flag} {file}: is a folder; name a file")
    if file and not Path(file).absolute().parent.is_dir():
        raise UsageError(f"{flag} {file}: no such folder: {Path(file).parent}")


def completed_results(folder: RunFolder) -> dict[str, Any] | None:
    """The results of a completed run, otherwise None."""
    path = folder.path / RESULTS
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return results if results.get("status") == "completed" else None


ENDS = ("epochs", "max_steps", "max_time")
"""Settings of training that determine its last step."""


def ends_differently(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether `recipe` ends at another step than the run in the folder."""
    before, now = read_yaml(folder.path / RECIPE).get("train", {}), recipe.saved({})["train"]
    return any(before.get(name) != now.get(name) for name in ENDS)
