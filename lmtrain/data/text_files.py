"""TODO."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from lmtrain.data.columns import Record
from lmtrain.errors import InputError, UsageError, suggestion, visible

Numbered = Iterator[tuple[int, Record]]

ENCODINGS = ("utf-8", "utf-16", "euc-kr", "cp949", "latin-1", "shift_jis")

LIKELY = ("euc-kr", "cp949", "shift_jis", "latin-1")
"""What a text may be that is not UTF-8: those that fit are named. The last one fits everything."""

MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
"""What a file starts with -> its encoding. UTF-32 first: its mark starts with that of UTF-16."""

LONGEST_NAME = 4096


def shown(path: Path) -> str:
    """A path as it is printed: its name may hold anything."""
    return visible(str(path), LONGEST_NAME)


def guarded(reader: Callable[..., Iterator[Any]], path: Path, encoding: str | None) -> Numbered:
    """`reader` over a file, with what the operating system and the decompressors raise said in our words."""
    try:
        yield from reader(partial(open_bytes, path), encoding, shown(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{shown(path)}: damaged or not what its name says: {error}") from None
    except OSError as error:
        # The decompressors of bzip2 and zstandard have no exceptions of their own.
        damaged = "" if error.strerror else "damaged or not what its name says: "
        raise InputError(f"{shown(path)}: {damaged}{error.strerror or error}") from None


def open_bytes(path: Path) -> IO[bytes]:
    end = path.suffix.lower()
    if end == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(end)
    return opener(path, "rb") if opener else io.BufferedReader(_AsOpened(path), 1 << 17)


class _AsOpened(io.RawIOBase):
    """A file as long as it was when it was opened: what is appended meanwhile would be read half, or without end."""

    def __init__(self, path: Path):
        self.path, self.file = path, io.FileIO(path)
        status = os.fstat(self.file.fileno())
        self.left = status.st_size if stat.S_ISREG(status.st_mode) else sys.maxsize

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: self.left]
        count = self.file.readinto(wanted)
        if wanted and not count and self.left < sys.maxsize:
            raise InputError(f"{shown(self.path)}: was cut off while it was read; start again when it is whole")
        self.left -= count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def decoded(
    opener: Callable[[], IO[bytes]], encoding: str | None, name: str, newline: str | None
) -> Iterator[IO[str]]:
    """The file as text. Raises InputError, with the line, where a byte does not fit the encoding."""
    try:
        with opener() as raw:
            start = raw.read(1000)
        known = encoding or _marked(start, name)
        with opener() as raw:
            yield io.TextIOWrapper(raw, known, newline=newline)  # type: ignore[arg-type]
    except LookupError:
        raise UsageError(f"--encoding {encoding}: no such encoding{suggestion(str(encoding), ENCODINGS)}") from None
    except UnicodeDecodeError:
        raise InputError(_undecodable(opener, known, name)) from None


def _marked(start: bytes, name: str) -> str:
    """The encoding that the first bytes of a file declare. Raises InputError for UTF-16 that does not."""
    if marked := next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None):
        return marked
    for position, encoding in enumerate(("utf-16-be", "utf-16-le")):
        zeros, others = start[position::2].count(0), start[1 - position :: 2].count(0)
        if zeros > 0.4 * len(start) and not others:
            raise InputError(f"{name}: every other byte is zero, so it is UTF-16 without its mark; say so with "
                             f"--encoding {encoding}")  # fmt: skip
    return "utf-8-sig"


def _undecodable(opener: Callable[[], IO[bytes]], encoding: str, name: str) -> str:
    """Where a file stops being text of this encoding, and what it might be instead."""
    decoder, number = codecs.getincrementaldecoder(encoding)(), 1
    line = b""
    with opener() as raw:
        if b"\0" in raw.read(8192) and not encoding.startswith("utf-16"):
            return f"{name}: not a text, but binary data"
    with opener() as raw:
        try:
            for line in raw:
                number += decoder.decode(line).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
    fitting = [other for other in LIKELY if other != encoding and _fits(line, other)]
    if "euc-kr" in fitting and "cp949" in fitting:
        fitting.remove("cp949")  # which is euc-kr and more
    return (f"{name}, line {number}: not {encoding.removesuffix('-sig').upper()} text; "
            f"say what it is with --encoding, e.g. {' or '.join(fitting)}")  # fmt: skip


def _fits(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
