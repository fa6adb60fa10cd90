"""TODO."""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmtrain.errors import StorageError
from lmtrain.runtime.console import to_json
from lmtrain.runtime.redaction import by_value, in_document


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, as `fsync` of a file does not."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole or not there."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(by_value()(text))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_lines(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or not there. Raises StorageError."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.writelines(to_json(in_document(document)) + "\n" for document in documents)
        aside.replace(path)
    except OSError as error:
        raise storage_error(path, error) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(path: Path, error: OSError) -> StorageError:
    remedy = "free some space or choose" if error.errno in FULL else "choose"
    return StorageError(f"{path}: {error.strerror or error}; {remedy} another --output-dir")
