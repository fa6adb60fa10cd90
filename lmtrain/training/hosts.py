"""What the processes of several hosts share: decisions of the first process, and folders that only its host has."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lmtrain.errors import UsageError
from lmtrain.runs.checkpoint import MANIFEST

AT_ONCE = 1 << 26
"""Bytes of a file that are sent at once."""

Value = TypeVar("Value")


def of_first(value: Value) -> Value:
    """The value that the first process has. All processes must call it."""
    found: list[Any] = [value]
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    first: Value = found[0]
    return first


@contextmanager
def on_every_host(checkpoint: Path | None) -> Iterator[Path | None]:
    """The checkpoint of the first process; while open, hosts without it have a temporary copy.

    All processes must open it, with the path that the first one has.
    """
    state = PartialState()
    seal = _seal(checkpoint) if checkpoint else b""
    seals = gather_object([seal]) if state.num_processes > 1 else [seal]
    if checkpoint is None or len(set(seals)) == 1:
        yield checkpoint
        return
    name = f"lmtrain-{sha256(seals[0]).hexdigest()[:16]}-{os.environ.get('MASTER_PORT', '')}"
    place = checkpoint if seal == seals[0] else Path(tempfile.gettempdir()) / name
    try:
        _send(checkpoint, None if place == checkpoint or not state.is_local_main_process else place)
        yield place
    finally:
        if place != checkpoint and state.is_local_main_process:
            shutil.rmtree(place, ignore_errors=True)


def _seal(checkpoint: Path) -> bytes:
    """The manifest, which holds the hash of every file; empty where there is none."""
    path = checkpoint / MANIFEST
    return path.read_bytes() if path.is_file() else b""


def _send(source: Path, target: Path | None) -> None:
    """Send the files of a folder from the first process to each process that has a `target`."""
    first = PartialState().is_main_process
    files = of_first([path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()])
    for name in files:
        size = of_first((source / name).stat().st_size if first else 0)
        reader = (source / name).open("rb") if first else None
        if target:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        writer = (target / name).open("wb") if target else None
        for _ in range(0, size, AT_ONCE):
            part = of_first(reader.read(AT_ONCE) if reader else b"")
            if writer:
                writer.write(part)
        for file in (reader, writer):
            if file:
                file.close()
    PartialState().wait_for_everyone()


def check_shared(file: Path) -> None:
    """Raise UsageError unless every host has the file that the first process wrote."""
    content = file.read_bytes() if file.is_file() else b""
    found = gather_object([content])
    if len(set(found)) > 1:
        raise UsageError(
            f"--shard fsdp2: every process writes its part of a checkpoint, but {file.parent} is not the same folder on all "
            "hosts; choose an --output-dir that they share"
        )
