"""One run folder, one run: a lock that says who holds it, and that ends with its owner."""

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
    """Hold the run folder, which is made if it is not there, and removed again if nothing was written to it.

    The system lets go of the lock when the process ends, however it ends. Raises StorageError where another has it.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    new = [made for made in (folder, *folder.parents) if not made.exists()]
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
            path.unlink()  # while it is held; whoever has opened it meanwhile sees that it is gone
        lock.release()
        with suppress(OSError):
            for made in new:  # those that are still empty
                made.rmdir()


def _owner(path: Path) -> str:
    for _ in range(10):
        with suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(path.read_text(encoding="utf-8"))
            return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
        time.sleep(0.05)  # it holds the lock, and has yet to write who it is
    return "another process"
