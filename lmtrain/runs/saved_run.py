"""Runs that were saved: a run folder, or a results.json by itself."""

import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmtrain.config.architectures import ADAPTER, LABELS, read_json
from lmtrain.config.assertions import holds, name_of
from lmtrain.config.values import Document
from lmtrain.errors import InputError
from lmtrain.runs.file_names import PREDICTIONS, RECIPE, RESULTS
from lmtrain.runs.lock import is_held


@dataclass(frozen=True)
class SavedRun:
    """What a run left."""

    path: str
    """As it was named."""
    results: Document

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.results.get("metrics") or {})

    @property
    def settings(self) -> Document:
        return dict(self.results.get("settings") or {})

    @property
    def predictions(self) -> Path | None:
        """The file with a line for each evaluated row, if there is one."""
        given = self.results.get("predictions") or self.settings.get("eval.predictions")
        beside = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        places = [Path(given)] if given else []
        places += [beside / PREDICTIONS] if Path(self.path).is_dir() or not given else []
        return next((place for place in places if place.is_file()), None)


def read_run(path: str) -> SavedRun:
    """Read a run folder, or a results.json. Raises InputError."""
    file = Path(path, RESULTS) if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = "no results.json in it; is it a run folder, and has the run ended?"
        raise InputError(f"{path}: {what if Path(path).is_dir() else error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("metrics"), dict):
        raise InputError(
            f"{file}: contains no metrics; expected a results.json or the output of `lmtrain eval --json`"
        )
    return SavedRun(path, document)


def noted_labels(name: str) -> tuple[list[str], str | None]:
    """(labels, kind of rows) of an adapter that gives labels; none of other models, whose configuration has them.

    Raises InputError.
    """
    file = Path(name) / LABELS
    if not (file.is_file() and (Path(name) / ADAPTER).is_file()):
        return [], None
    document = read_json(file)
    return [str(label) for label in document.get("labels") or ()], str(document.get("kind"))


def check_labels(name: str, kind: str, labels: Collection[str]) -> list[str]:
    """The labels to train the model `name` with: those of the data, or of an adapter that has them all.

    Raises InputError for an adapter with other labels, or for other rows.
    """
    own, of_kind = noted_labels(name)
    if own and (of_kind != kind or not set(labels) <= set(own)):
        raise InputError(
            f"{name}: an adapter for the labels {', '.join(own[:10])} does not fit these rows; train a new one"
        )
    return own or list(labels)


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders below a folder, itself included, in the order of their names."""
    if (folder / RECIPE).is_file() and ((folder / RESULTS).is_file() or (folder / "checkpoints").is_dir()):
        yield folder
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:  # not ours to read
        return
    for path in inner:
        if not path.name.startswith("."):
            yield from find_runs(path)


def describe(folder: Path) -> Document:
    """An entry of `lmtrain runs`: path, status, objective, model, metrics, bytes and when it finished."""
    try:
        results = read_run(str(folder)).results
    except InputError:
        results = {}
    status = "running" if is_held(folder) else results.get("status", "unfinished")
    files = [found for file in folder.rglob("*") if (found := _stat(file))]
    last = max((file.st_mtime for file in files), default=time.time())
    known = {"objective": results.get("objective"), "model": results.get("model")}
    return {
        "path": str(folder),
        "status": status,
        **(known if all(known.values()) else _of_recipe(folder)),
        "metrics": results.get("metrics") or {},
        "bytes": sum(file.st_size for file in files),
        "finished": results.get("finished") or time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(last)),
    }


def _stat(file: Path) -> os.stat_result | None:
    """Of a file; None if it is no file, or gone by now: a run may be writing here."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _of_recipe(folder: Path) -> Document:
    """Objective and model of a run that has no results."""
    from lmtrain.config.loading import read_yaml

    try:
        recipe = read_yaml(folder / RECIPE)
        return {"objective": recipe.get("objective"), "model": (recipe.get("model") or {}).get("name")}
    except InputError:
        return {"objective": None, "model": None}


def fulfils(run: Document, conditions: Collection[str]) -> bool:
    """Whether the metrics of a described run meet all conditions such as `bleu>20`."""
    values = {condition: run["metrics"].get(name_of(condition)) for condition in conditions}
    return all(value is not None and holds(condition, value) for condition, value in values.items())
