"""The command `lmtrain`."""

import sys

from lmtrain.runtime.heap import restart_with_compact_heap

TRAINING = ("clm", "mlm", "seq2seq", "classify", "run", "bench")
"""Commands that train."""


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in TRAINING and "--help" not in sys.argv:
        restart_with_compact_heap()  # first, because it starts Python anew
    from lmtrain.cli.app import app
    from lmtrain.runtime.group import leave
    from lmtrain.runtime.processes import is_launched

    try:
        app(prog_name="lmtrain")
    except SystemExit as end:
        if is_launched():
            leave(end.code)
        raise


if __name__ == "__main__":
    main()
