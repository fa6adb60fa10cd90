"""Standard output and standard error that do not fail: a console without a character, a reader that has left."""

import codecs
import errno
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from lmtrain.errors import InputError, StorageError, visible

SUBSTITUTE = "lmtrain.substitute"
"""The name of the error handler, as `errors` of a stream."""

PLAIN = {
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺–—", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **{"…": "...", "·": "-", "×": "x", "→": "->"},
    **{"«": "<<", "»": ">>", "‹": "<", "›": ">", "␣": "~", "↵": "\\n", "⇥": "\\t"},
}
"""What lmtrain and its libraries print, such as the marks of preview -> the same in ASCII."""

GONE = (errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)


class Stream(TextIOWrapper):
    """A standard stream that drops what it is given once its reader has left, as `head` does."""

    reader_left = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Write to nowhere from now on. Raises StorageError unless the reader has left: its disk is full."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if error.errno not in GONE:
            raise StorageError(f"{self.name}: {error.strerror}; send the output to another disk") from None
        self.reader_left = True


def install() -> None:
    """Replace the standard streams of this process by ones that do not fail; those of a test or a notebook stay."""
    codecs.register_error(SUBSTITUTE, substitute)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed by whoever started the process
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, TextIOWrapper):
            stream.flush()
            replaced = Stream(stream.buffer, stream.encoding, SUBSTITUTE, None, stream.line_buffering)
            setattr(sys, name, replaced)


def substitute(error: UnicodeError) -> tuple[str, int]:
    """For characters that an encoding does not have: signs and lines of tables in ASCII, all else as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if "\u2500" <= character <= "\u257f":
        return PLAIN.get(character, "+")
    return PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


def is_utf8() -> bool:
    """Whether standard output can say every character."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"


def check_arguments(arguments: list[str]) -> None:
    """Raise InputError for an argument of bytes that are no text in the encoding of this system."""
    for argument in arguments:
        if argument.isascii() or not any("\udc80" <= c <= "\udcff" for c in argument):
            continue
        try:
            os.fsencode(argument).decode("utf-8")
            remedy = f"this system reads arguments as {sys.getfilesystemencoding()}; set PYTHONUTF8=1"
        except UnicodeDecodeError:
            remedy = "write it in UTF-8, or rename the file"
        raise InputError(f"{visible(argument, 80)}: an argument that is not UTF-8 text; {remedy}")
