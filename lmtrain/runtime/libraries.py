"""The libraries: environment variables before they are imported, and how they are imported and kept quiet."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lmtrain.runtime.console import Console


def set_environment(offline: bool | None, threads: int | None = None) -> None:
    """Set what the hub's client and the tokenizers read once, when they are imported."""
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
    if offline or os.environ.get("LMTRAIN_OFFLINE", "").lower() in ("1", "true"):
        for library in ("HUB", "DATASETS", "EVALUATE"):
            os.environ[f"HF_{library}_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Rows are tokenised before workers are forked; each worker would print a warning about it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@contextmanager
def loading_libraries(console: Console) -> Iterator[None]:
    """Open this around imports that may take seconds.

    While modules create a million objects, all of which stay, Python would look for garbage again and again: a third of
    the time. So it does not look meanwhile, and never looks at these objects again.
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
