"""Whether this process is one of several that train together."""

import os


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate) started this process as one of several."""
    return "LOCAL_RANK" in os.environ or "WORLD_SIZE" in os.environ


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
