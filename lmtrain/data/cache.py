"""Results that are kept for the next run on the same data: by the hash of all that they are a function of."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmtrain.runtime.console import Console

Arrays = dict[str, Any]
"""Name -> numpy array."""

Kept = tuple[Arrays, dict[str, Any]]
"""Arrays, and a document of JSON."""

UNUSED_DAYS = 30
"""An entry that nobody has used for so long is removed when another is written."""


class Cache:
    """A folder of entries. An entry is whole or not there, and of several runs that want it at once one makes it."""

    def __init__(self, folder: Path | None, console: Console):
        self.folder, self.console = folder, console

    @classmethod
    def of(cls, run: Any, console: Console) -> "Cache":
        """The cache that a recipe's run section asks for; with --no-cache one that keeps nothing."""
        if not run.cache:
            return cls(None, console)
        base = os.environ.get("XDG_CACHE_HOME")
        home = Path(base) if base else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111 - it takes having no home
        return cls(Path(run.cache_dir) if run.cache_dir else home / "lmtrain", console)

    def key(self, *parts: Any) -> str:
        """The hash of what an entry is a function of; the code that makes it is a part of that."""
        digest = sha256(_code())
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def holds(self, key: str) -> bool:
        return self.folder is not None and (self.folder / key / "document.json").is_file()

    def remember(self, key: str | None, make: Callable[[], Kept], still: Callable[[], bool] = lambda: True) -> Kept:
        """The entry of `key`, made if it is not there, and kept if the key `still` is right when it has been made.

        A folder that cannot be written to keeps nothing.
        """
        if self.folder is None or key is None:
            return make()
        place = self.folder / key
        with self._lock(key):
            if found := _load(place):
                return found
            made = make()
            if not still():
                return made
            try:
                _store(place, *made)
                self._tidy()
            except OSError as error:
                self.console.note(f"{self.folder}: {error.strerror or error}; nothing is kept for the next run")
                return made
        return _load(place) or made

    def _lock(self, key: str) -> Any:
        from filelock import FileLock

        assert self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{key}.lock")
            try:
                return lock.acquire(timeout=1)
            except TimeoutError:
                self.console.note("another run prepares the same data; waiting for it")
                return lock.acquire()
        except OSError:
            return nullcontext()

    def _tidy(self) -> None:
        assert self.folder
        oldest = time.time() - UNUSED_DAYS * 86400
        for document in self.folder.glob("*/document.json"):
            with suppress(OSError):
                if document.stat().st_mtime < oldest:
                    shutil.rmtree(document.parent)
                    document.parent.with_suffix(".lock").unlink(missing_ok=True)


def _code() -> bytes:
    modules = sorted(Path(__file__).parent.glob("*.py"))
    libraries = " ".join(f"{name} {version(name)}" for name in ("tokenizers", "transformers", "pyarrow"))
    return b"".join(module.read_bytes() for module in modules) + libraries.encode()


def _load(place: Path) -> Kept | None:
    document = place / "document.json"
    try:
        found = json.loads(document.read_text(encoding="utf-8"))
        arrays = {name: _mapped(place / f"{name}.npy") for name in found["arrays"]}
        os.utime(document)  # used today
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return arrays, found


def _mapped(file: Path) -> Any:
    """An array from its file, so that pages that are not in use cost no memory."""
    import numpy as np

    return np.load(file, mmap_mode="r", allow_pickle=False)


def _store(place: Path, arrays: Arrays, document: dict[str, Any]) -> None:
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.rmtree(place, ignore_errors=True)  # what is there is damaged, or it would have been loaded
        aside.mkdir(parents=True)
        for name, values in arrays.items():
            _save(aside / f"{name}.npy", values)
        text = json.dumps({**document, "arrays": sorted(arrays)}, ensure_ascii=False)
        (aside / "document.json").write_text(text, encoding="utf-8")
        aside.replace(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _save(file: Path, values: Any) -> None:
    import numpy as np

    np.save(file, values, allow_pickle=False)
