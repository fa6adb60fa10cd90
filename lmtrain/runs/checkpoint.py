"""Checkpoints that are whole or not there, and which of them a run goes on from.

One is written aside on the same file system; every file is brought to the disk; a manifest with the size and sha256 of
each is written last; then the folder is renamed into its place, and only then are older ones removed. So whatever stops
a run, and wherever, what stands under the name of a checkpoint can be gone on from. What a dead run left aside is
cleared away by the next.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError
from lmtrain.runtime.files import atomic_write, sync
from lmtrain.version import __version__

MANIFEST = "manifest.json"
FORMAT = 1
ASIDE, REPLACED, REMOVED = ".saving-", ".replaced-", ".removing-"
"""What a checkpoint is called while it is written, while another takes its place, and while it is removed."""


@dataclass(frozen=True)
class Continued:
    """What a run goes on from: nothing, or a checkpoint of the run that `identity` tells of (drift.py)."""

    checkpoint: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What there is to say about it, and about those that were passed over."""


def step_of(path: Path) -> int:
    """The step at which a checkpoint was saved; -1 where its name does not say."""
    number = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(number[1]) if number else -1


def at(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"checkpoint-{step}"


# --- writing ---------------------------------------------------------------------------------------------------------
def begin(place: Path) -> Path:
    """An empty folder to write the checkpoint `place` into."""
    aside = place.with_name(f"{ASIDE}{step_of(place)}")
    discard(aside)
    aside.mkdir(parents=True)
    return aside


def discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def publish(aside: Path, place: Path, identity: dict[str, Any]) -> None:
    """Make of what was written `aside` the checkpoint `place`, in the place of one that may be there."""
    seal(aside, step_of(place), identity)
    replaced = place.with_name(f"{REPLACED}{step_of(place)}")
    if place.exists():
        place.replace(replaced)
    aside.replace(place)
    sync(place.parent)
    discard(replaced)


def seal(folder: Path, step: int, identity: dict[str, Any]) -> None:
    """Bring every file to the disk and write the manifest, by which `damage` will know them again.

    `identity` is what the run is, to be compared with what it is when it goes on (drift.py).
    """
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
    """Remove all but the newest `keep`, the best among them; the newest and the best stay whatever `keep` says.

    Those of later steps are what is left of a run that was gone back behind.
    """
    there = sorted((path for path in checkpoints.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)
    before = [path for path in there if step_of(path) <= newest]
    kept = before[-keep:]
    if best is not None and at(checkpoints, best) not in kept:
        kept = before[-max(keep - 1, 1) :]
    for path in there:
        if path not in kept and step_of(path) != best:
            removed = path.with_name(f"{REMOVED}{step_of(path)}")
            path.replace(removed)  # first of all: half a checkpoint never stands under its name
            discard(removed)


def clear(checkpoints: Path) -> None:
    """Put away what a run that died left behind; a checkpoint that was about to be replaced has its name again."""
    for replaced in checkpoints.glob(f"{REPLACED}*"):
        place = at(checkpoints, int(replaced.name.removeprefix(REPLACED)))
        if not place.exists():
            replaced.replace(place)
    for mark in (ASIDE, REPLACED, REMOVED):
        for folder in checkpoints.glob(f"{mark}*"):
            discard(folder)


# --- reading ---------------------------------------------------------------------------------------------------------
def to_resume(resume: str | None, checkpoints: Path) -> Continued:
    """What `--resume` means.

    `auto` passes over what is damaged. Raises InputError for a named one that is.
    """
    if resume is None:
        return Continued()
    if resume != "auto":
        path = Path(resume)
        if wrong := damage(path):
            raise InputError(f"{path}: not a whole checkpoint: {wrong}; --resume auto takes the newest whole one")
        return Continued(path, _identity(path), (f"going on from {path}",))
    passed: list[str] = []
    for path in sorted(checkpoints.glob("checkpoint-*"), key=step_of, reverse=True):
        wrong = damage(path)
        if wrong is None:
            return Continued(path, _identity(path), (*passed, f"going on from {path}"))
        passed.append(f"passing over {path.name}: {wrong}")
    return Continued(notes=(*passed, "no whole checkpoint to go on from: starting anew"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is, byte for byte, what was saved."""
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
    return (_manifest(path) or {}).get("identity", {})


def _difference(there: dict[str, Path], saved: dict[str, Any]) -> str | None:
    if lost := [name for name in saved if name not in there]:
        return f"{lost[0]} is missing"
    if strange := [name for name in there if name not in saved]:
        return f"{strange[0]} does not belong to it"
    for name, file in there.items():
        size = file.stat().st_size
        if size != saved[name]["size"]:
            return f"{name} is damaged: {size:,} bytes of {saved[name]['size']:,}"
    for name, file in there.items():
        if _sha256(file) != saved[name]["sha256"]:
            return f"{name} is damaged: its content is not what was saved"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): path for path in found}


def _manifest(folder: Path) -> dict[str, Any] | None:
    """None for one that is not, to the letter, what `seal` wrote."""
    content = (folder / MANIFEST).read_bytes()
    try:
        document = json.loads(content)
        document.pop("seal")
        return document if _sealed(document).encode() == content else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _sealed(document: dict[str, Any]) -> str:
    own = sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({**document, "seal": own}, indent=1) + "\n"
