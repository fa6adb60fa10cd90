"""Atomic writes: a file or a folder appears complete or not at all, with the permissions that the umask leaves."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lmtrain.errors import StorageError
from lmtrain.runtime.console import to_json
from lmtrain.runtime.redaction import redact_document, value_redactor


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[TextIO]:
    """Open a UTF-8 text file that replaces `path` when the block ends without an exception.

    Half of a surrogate pair, which a name or a text may hold and UTF-8 cannot, is written as an escape.
    The text goes to `.NAME.part` in the same folder first. With `durable` it is flushed to the disk before the rename,
    so that it survives a power failure. A file that replaces another is readable by no more people than that one was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, suffix: str = "part") -> Iterator[Path]:
    """Create an empty folder that is renamed to `path` when the block ends without an exception.

    The folder is `.NAME.SUFFIX` beside `path`; give the process id as `suffix` where several processes may write the
    same folder at once. `path` must not exist or be an empty folder. Nothing is flushed to the disk.
    """
    part = path.with_name(f".{path.name}.{suffix}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        share(part)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace(part: Path, path: Path) -> None:
    """Rename `part` to `path`. If that replaces a file, only permissions that both have stay."""
    with suppress(OSError):  # no such file, or a file system without permissions
        part.chmod(stat.S_IMODE(part.stat().st_mode) & stat.S_IMODE(path.stat().st_mode))
    part.replace(path)


def share(folder: Path) -> None:
    """Give all files in a folder, which this process made, the permissions that the umask leaves.

    safetensors writes files that only their owner can read. The umask is seen in the mode of the folder: asking for it
    would change it, also for other threads.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with suppress(OSError):  # a file system without permissions
                file.chmod(mode)


def sync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text without the secrets in it, atomically."""
    with atomic_write(path) as stream:
        stream.write(value_redactor()(text))


def write_lines(path: Path, documents: Iterable[dict[str, Any]], flag: str = "--output-dir") -> None:
    """Write JSON lines without the secrets in them, atomically. Raises StorageError; `flag` names another place."""
    try:
        with atomic_write(path, durable=False) as stream:
            stream.writelines(to_json(redact_document(document)) + "\n" for document in documents)
    except OSError as error:
        raise storage_error(path, error, flag) from None


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(path: Path, error: OSError, flag: str = "--output-dir") -> StorageError:
    remedy = "free some space or choose" if error.errno in DISK_FULL else "choose"
    return StorageError(f"{path}: {error.strerror or error}; {remedy} another {flag}")
