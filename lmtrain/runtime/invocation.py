"""What was typed, and the commit of the folder that it was typed in: the origin of a run, for its results."""

import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from lmtrain.runtime.redaction import redact

SECONDS_FOR_GIT = 5.0
"""Git may take long in a large repository; after this time the commit is left out."""


class _Typed:
    """The command line of this process, which is one for the process."""

    words: ClassVar[tuple[str, ...]] = ()
    began: ClassVar[datetime] = datetime.now(UTC)


def note_command(words: Sequence[str]) -> None:
    """Remember the words of the command line, without the program's name."""
    _Typed.words, _Typed.began = tuple(words), datetime.now(UTC)


def origin() -> dict[str, Any]:
    """The keys `command`, `started`, `finished` (UTC) and `git_commit` of results.json.

    There is no command for a Python program, and no commit outside a repository.
    """
    command = redact(shlex.join(["lmtrain", *_Typed.words])) if _Typed.words else None
    known = {
        "command": command,
        "started": _Typed.began.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
    }
    return {name: value for name, value in known.items() if value is not None}


def git_commit() -> str | None:
    """The commit of the current folder, with `-dirty` where files were changed since; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("-dirty" if _git("status", "-s", "-uno") else "")


def _git(*words: str) -> str | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=SECONDS_FOR_GIT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
