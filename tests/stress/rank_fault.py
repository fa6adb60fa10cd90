"""A fault in one process of a group, for `sitecustomize`: RANK_FAULT=RANK:STEP:KIND, with one of KINDS.

RANK:N:dies kills the process at its N-th operation on the files of checkpoints, RANK:0:points=LOG writes those to LOG.
"""

import builtins
import os
import signal
import sys
import time
from typing import Any


def _raise() -> None:
    raise RuntimeError("a fault of this process alone")


def _refuse() -> None:
    from lmtrain.errors import BrokenDown

    raise BrokenDown("the loss of step 2 is not a finite number")


KINDS = {
    "raise": _raise,
    "refuse": _refuse,
    "exit": lambda: os._exit(9),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(600),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def install() -> None:
    """Let the fault happen before that step; the trainer is patched as soon as it is imported."""
    rank, step, kind = os.environ["RANK_FAULT"].split(":")
    if kind == "dies" or kind.startswith("points="):
        if os.environ.get("RANK") == rank:
            import trials

            trials.dies_at("run", int(step) or None, kind.removeprefix("points=") if kind != "dies" else None)()
        return
    original = builtins.__import__

    def importing(*arguments: Any, **options: Any) -> Any:
        module = original(*arguments, **options)
        trainer = getattr(sys.modules.get("lmtrain.training.trainer"), "ExactTrainer", None)
        if trainer and os.environ.get("RANK") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            builtins.__import__ = original
            begin = trainer.get_batch_samples

            def faulty(self: Any, *more: Any, **others: Any) -> Any:
                if self.state.global_step + 1 == int(step):
                    KINDS[kind]()
                return begin(self, *more, **others)

            trainer.get_batch_samples = faulty
        return module

    builtins.__import__ = importing
