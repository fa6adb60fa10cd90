"""Atomic checkpoints, and the choice of the one to resume from.

A checkpoint is written to a temporary folder; all files are flushed to the disk; a manifest with their sizes and sha256
hashes is written last; then the folder is renamed, and only then are older checkpoints removed. So a folder named
checkpoint-N is complete, whenever a run was stopped. The next run removes temporary folders that a dead run left.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError
from lmtrain.runtime.files import atomic_write, share, sync
from lmtrain.version import __version__

MANIFEST = "manifest.json"
FORMAT = 1
ASIDE, REPLACED, REMOVED = ".saving-", ".replaced-", ".removing-"
"""Prefixes of a checkpoint's name while it is written, replaced and removed."""


@dataclass(frozen=True)
class ResumePoint:
    """What a run resumes from: a checkpoint, or nothing."""

    checkpoint: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    """The identity of the run that saved it (compatibility.py)."""
    notes: tuple[str, ...] = ()
    """Messages about the choice of the checkpoint."""


def step_of(path: Path) -> int:
    """The step at which a checkpoint was saved, from its name; -1 for a folder of another name."""
    number = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(number[1]) if number else -1


def path_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"checkpoint-{step}"


# --- writing ---------------------------------------------------------------------------------------------------------
def begin(place: Path) -> Path:
    """Create the temporary folder for the checkpoint `place`."""
    aside = place.with_name(f"{ASIDE}{step_of(place)}")
    discard(aside)
    aside.mkdir(parents=True)
    return aside


def discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def publish(aside: Path, place: Path, identity: dict[str, Any]) -> None:
    """Turn the temporary folder `aside` into the checkpoint `place`, replacing one of the same step."""
    seal(aside, step_of(place), identity)
    replaced = place.with_name(f"{REPLACED}{step_of(place)}")
    if place.exists():
        place.replace(replaced)
    aside.replace(place)
    sync(place.parent)
    discard(replaced)


def seal(folder: Path, step: int, identity: dict[str, Any]) -> None:
    """Flush every file to the disk, then write the manifest that `damage` checks the files against."""
    share(folder)
    files = {}
    for name, file in _files(folder).items():
        sync(file)
        files[name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    document = {"format": FORMAT, "lmtrain": __version__, "step": step, "identity": identity, "files": files}
    with atomic_write(folder / MANIFEST) as stream:
        stream.write(_sealed(document))
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(inside)


def rotate(checkpoints: Path, newest: int, best: int | None, keep: int) -> None:
    """Keep the newest `keep` checkpoints, including the best one; the newest and the best are always kept.

    Checkpoints of steps after `newest` were left by a run that was resumed from an earlier step. They are removed.
    """
    saved = sorted((path for path in checkpoints.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)
    valid = [path for path in saved if step_of(path) <= newest]
    kept = valid[-keep:]
    if best is not None and path_of(checkpoints, best) not in kept:
        kept = valid[-max(keep - 1, 1) :]
    for path in saved:
        if path not in kept and step_of(path) != best:
            removed = path.with_name(f"{REMOVED}{step_of(path)}")
            path.replace(removed)  # first: a folder named checkpoint-N is never incomplete
            discard(removed)


def clean_up(checkpoints: Path) -> None:
    """Remove the temporary folders of a run that died, and restore a checkpoint that it was replacing."""
    for replaced in checkpoints.glob(f"{REPLACED}*"):
        place = path_of(checkpoints, int(replaced.name.removeprefix(REPLACED)))
        if not place.exists():
            replaced.replace(place)
    for prefix in (ASIDE, REPLACED, REMOVED):
        for folder in checkpoints.glob(f"{prefix}*"):
            discard(folder)


# --- reading ---------------------------------------------------------------------------------------------------------
def find(resume: str | None, checkpoints: Path) -> ResumePoint:
    """The checkpoint that `--resume` selects; `auto` is the newest complete one.

    Raises InputError if the checkpoint is given by path and damaged.
    """
    if resume is None:
        return ResumePoint()
    if resume != "auto":
        path = Path(resume)
        if wrong := damage(path):
            raise InputError(
                f"{path}: not a complete checkpoint: {wrong}; --resume auto selects the newest complete one"
            )
        return ResumePoint(path, _identity(path), (f"resuming from {path}",))
    skipped: list[str] = []
    for path in sorted(checkpoints.glob("checkpoint-*"), key=step_of, reverse=True):
        wrong = damage(path)
        if wrong is None:
            return ResumePoint(path, _identity(path), (*skipped, f"resuming from {path}"))
        skipped.append(f"skipping {path.name}: {wrong}")
    return ResumePoint(notes=(*skipped, "no complete checkpoint to resume from: starting from the beginning"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file has the saved content."""
    try:
        document = _manifest(path)
        if document is None:
            return f"{MANIFEST} is damaged"
        if document["format"] != FORMAT:
            return f"saved by lmtrain {document['lmtrain']}, in a format that {__version__} does not read"
        return _difference(_files(path), document["files"])
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(str(error.filename)).name}: {error.strerror}"


def _identity(path: Path) -> dict[str, Any]:
    identity: dict[str, Any] = (_manifest(path) or {}).get("identity", {})
    return identity


def _difference(present: dict[str, Path], saved: dict[str, Any]) -> str | None:
    """The first difference between the files of a folder and its manifest."""
    if missing := [name for name in saved if name not in present]:
        return f"{missing[0]} is missing"
    if added := [name for name in present if name not in saved]:
        return f"{added[0]} does not belong to it"
    for name, file in present.items():
        size = file.stat().st_size
        if size != saved[name]["size"]:
            return f"{name} is damaged: {size:,} bytes of {saved[name]['size']:,}"
    for name, file in present.items():
        if _sha256(file) != saved[name]["sha256"]:
            return f"{name} is damaged: its content has changed"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): path for path in found}


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None if it is not exactly what `seal` wrote."""
    content = (folder / MANIFEST).read_bytes()
    try:
        document = json.loads(content)
        document.pop("seal")
        return document if _sealed(document).encode() == content else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _sealed(document: dict[str, Any]) -> str:
    """The text of a manifest, with its own hash as `seal`."""
    own = sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({**document, "seal": own}, indent=1) + "\n"
