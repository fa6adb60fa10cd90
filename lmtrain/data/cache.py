"""A cache on disk: prepared data, found again by a hash of everything that they depend on."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmtrain.config.train import Run
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import atomic_folder

Arrays = dict[str, Any]
"""Name -> numpy array."""

CacheEntry = tuple[Arrays, dict[str, Any]]
"""Arrays, and a JSON document."""

PACKAGE = Path(__file__).parents[1]

UNUSED_DAYS = 30
"""Entries that were not used for this many days are removed when a new one is written."""


class Cache:
    """A folder of entries. An entry is complete or absent, and only one of several concurrent runs makes it."""

    def __init__(self, folder: Path | None, console: Console):
        self.folder, self.console = folder, console

    @classmethod
    def of(cls, run: Run, console: Console) -> "Cache":
        """The cache that the recipe's section `run` names; with --no-cache it saves nothing."""
        if not run.cache:
            return cls(None, console)
        # os.path.expanduser works without a home directory, where Path.home raises.
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
        if not run.cache_dir and home.parts[0] == "~":
            console.note("this user has no home folder: the prepared data is not cached; --cache-dir names a folder")
            return cls(None, console)
        return cls(Path(run.cache_dir) if run.cache_dir else home / "lmtrain", console)

    def key(self, *parts: Any) -> str:
        """A hash of JSON-serialisable `parts`, of lmtrain's code and of the versions of the libraries it calls."""
        digest = sha256(_code())
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def remember(
        self, key: str | None, make: Callable[[], CacheEntry], is_valid: Callable[[], bool] = lambda: True
    ) -> CacheEntry:
        """Return the entry of `key`; make it if it is missing, and save it if `is_valid()` holds afterwards.

        Without a key, or where the folder cannot be written, nothing is saved.
        """
        if self.folder is None or key is None:
            return make()
        folder = self.folder / key
        with self._lock(key):
            if entry := _load(folder):
                return entry
            made = make()
            if not is_valid():
                return made
            try:
                _save(folder, *made)
                self._remove_unused()
            except OSError as error:
                self.console.note(
                    f"{self.folder}: {error.strerror or error}; the prepared data is not cached; --cache-dir names another folder"
                )
                self.folder = None  # which is said once
                return made
        return _load(folder) or made

    def _lock(self, key: str) -> AbstractContextManager[Any]:
        from filelock import FileLock

        assert self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{key}.lock")
            try:
                return lock.acquire(timeout=1)
            except TimeoutError:
                self.console.note("waiting for another run that prepares the same data")
                return lock.acquire()
        except (OSError, NotImplementedError):  # the latter where a file system has no locks
            return nullcontext()

    def _remove_unused(self) -> None:
        assert self.folder
        oldest = time.time() - UNUSED_DAYS * 86400
        for document in self.folder.glob("*/document.json"):
            with suppress(OSError):
                if document.stat().st_mtime < oldest:
                    shutil.rmtree(document.parent)
                    document.parent.with_suffix(".lock").unlink(missing_ok=True)


def code_files() -> list[Path]:
    """Every module of lmtrain, because any of them may change what is cached."""
    return sorted(PACKAGE.rglob("*.py"))


def _code() -> bytes:
    libraries = " ".join(f"{name} {version(name)}" for name in ("tokenizers", "transformers", "pyarrow"))
    return b"".join(file.read_bytes() for file in code_files()) + libraries.encode()


def _load(folder: Path) -> CacheEntry | None:
    """The saved entry; None where it is missing or damaged. The arrays are memory-mapped."""
    import numpy as np

    document = folder / "document.json"
    try:
        content = json.loads(document.read_text(encoding="utf-8"))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in content["arrays"]
        }
        os.utime(document)  # the time of the last use
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return arrays, content


def _save(folder: Path, arrays: Arrays, document: dict[str, Any]) -> None:
    import numpy as np

    shutil.rmtree(folder, ignore_errors=True)  # an existing entry is damaged, or it would have been loaded
    with atomic_folder(folder, suffix=str(os.getpid())) as part:
        for name, values in arrays.items():
            np.save(part / f"{name}.npy", values, allow_pickle=False)
        text = json.dumps({**document, "arrays": sorted(arrays)})
        (part / "document.json").write_text(text, encoding="utf-8")
