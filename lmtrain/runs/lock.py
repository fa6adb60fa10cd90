"""The lock of a run folder: one run at a time, released by the system when its process ends."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmtrain.errors import StorageError

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created, and removed again if nothing was written to it.

    Raises StorageError if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout:
        raise StorageError(
            f"{folder}: in use by {_owner(path)}; wait for it, or choose another --output-dir"
        ) from None
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; choose another --output-dir") from None
    try:
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the release: a process that opened the file meanwhile notices that it is gone
        lock.release()
        with suppress(OSError):
            for empty in created:  # fails at the first that is not empty
                empty.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a run uses the folder now, by the process that the lock names: taking the lock would be in its way."""
    try:
        owner = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        if owner["host"] != socket.gethostname():
            return True
        os.kill(int(owner["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _owner(path: Path) -> str:
    """The process that holds the lock, in words."""
    for _ in range(10):
        with suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(path.read_text(encoding="utf-8"))
            return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
        time.sleep(0.05)  # the owner has the lock, but may not have written its id yet
    return "another process"
