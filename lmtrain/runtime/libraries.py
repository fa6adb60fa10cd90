"""Setup of the libraries: environment variables before import, the import itself, their log levels."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lmtrain.runtime.console import Console


def set_environment(offline: bool | None, threads: int | None = None) -> None:
    """Set the environment variables that huggingface_hub and tokenizers read when they are imported."""
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
    if offline or os.environ.get("LMTRAIN_OFFLINE", "").lower() in ("1", "true"):
        for library in ("HUB", "DATASETS", "EVALUATE"):
            os.environ[f"HF_{library}_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Otherwise each data loading worker warns that tokenizers was used before the fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@contextmanager
def loading_libraries(console: Console) -> Iterator[None]:
    """Import libraries in this block: it shows a spinner and turns off garbage collection.

    The imports create a million objects that all stay alive; collecting meanwhile takes a third of the time. Afterwards
    the objects are frozen, so that later collections skip them.
    """
    first = "torch" not in sys.modules
    with console.working("loading torch and transformers"):
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
    if first:
        gc.freeze()
    from lmtrain.runtime.device import quiet_libraries

    quiet_libraries()
