"""Opens text files: compression, encodings, and error messages with file and line."""

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

from lmtrain.data.columns import BadRow, Entry
from lmtrain.data.readers.contents import BYTE_ORDER_MARKS, START, is_binary, not_text
from lmtrain.errors import InputError, UsageError, suggestion, visible

Numbered = Iterator[tuple[int, Entry]]
"""(line or row number, record or why there is none)."""

ENCODINGS = ("utf-8", "utf-16", "euc-kr", "cp949", "latin-1", "shift_jis")

LIKELY = ("euc-kr", "cp949", "shift_jis", "latin-1")
"""Encodings to suggest where a text is not UTF-8 and they fit. The last one fits any bytes."""

LONGEST_NAME = 4096


def printable(path: Path) -> str:
    """A path with control characters escaped: file names may contain anything."""
    return visible(str(path), LONGEST_NAME)


def guarded(reader: Callable[..., Iterator[Any]], path: Path, encoding: str | None) -> Numbered:
    """Yield from `reader` on a file. Raises InputError where the operating system or a decompressor raises."""
    try:
        yield from reader(partial(open_bytes, path), encoding, printable(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{printable(path)}: damaged or not what its name says: {error}") from None
    except OSError as error:
        if "too much memory" in str(error):  # of zstandard
            raise InputError(
                f"{printable(path)}: compressed by zstd with a long window (of more than 128 MiB), which cannot be read; "
                "decompress it, or compress it anew with a shorter one"
            ) from None
        # The decompressors of bzip2 and zstandard raise a plain OSError without an errno.
        damaged = "" if error.strerror else "damaged or not what its name says: "
        raise InputError(f"{printable(path)}: {damaged}{error.strerror or error}") from None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, decompressed as its suffix says."""
    end = path.suffix.lower()
    if end == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(end)
    return opener(path, "rb") if opener else io.BufferedReader(_FixedSizeFile(path), 1 << 17)


class _FixedSizeFile(io.RawIOBase):
    """A file read up to its size when opened, because an appended line may be incomplete or the appending endless."""

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
            raise InputError(f"{printable(self.path)}: was cut off while it was read; start again when it is complete")
        self.left -= count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def decoded(
    opener: Callable[[], IO[bytes]], encoding: str | None, name: str, newline: str | None
) -> Iterator[io.TextIOWrapper]:
    """Open a file as text. Raises InputError for a file that is not text.

    Bytes that are not text in this encoding become surrogates, which `undecodable` finds. In UTF-16 and UTF-32 they
    raise InputError with their line, because the lines after them are not known.
    """
    try:
        with opener() as raw:
            start = raw.read(START)
        if what := not_text(start):
            raise InputError(f"{name}: {what}")
        actual = encoding or _detect_encoding(start[:1000], name)
        wide = codecs.lookup(actual).name.startswith(("utf-16", "utf-32"))
        if (not encoding and is_binary(start)) or (b"\0" in start and not wide and not _begins(start, actual)):
            raise InputError(f"{name}: binary data, not text")
        with opener() as raw:
            yield io.TextIOWrapper(raw, actual, errors="strict" if wide else "surrogateescape", newline=newline)
    except LookupError:
        raise UsageError(f"--encoding {encoding}: no such encoding{suggestion(str(encoding), ENCODINGS)}") from None
    except UnicodeDecodeError:
        raise InputError(_describe_undecodable(opener, actual, name)) from None


def start_of(opener: Callable[[], IO[bytes]]) -> bytes:
    """The first bytes of a file; empty where it cannot be read, which its reader will report."""
    try:
        with opener() as raw:
            return raw.read(START)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, InputError):
        return b""


def first_lines(start: bytes, encoding: str | None) -> str:
    """The lines in the first bytes of a text, with line feeds at their ends; empty for no text."""
    try:
        text = start.decode(encoding or _detect_encoding(start[:1000], ""), "ignore")
    except (LookupError, UnicodeError, InputError):
        return ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return lines if len(start) < START or "\n" not in lines else lines[: lines.rindex("\n") + 1]


def undecodable(text: str, lines: io.TextIOWrapper) -> BadRow | None:
    """Why a text from `lines` cannot be used if some of its bytes are not of the encoding, otherwise None."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = lines.encoding.removesuffix("-sig")
        return BadRow(_not_text(text.encode(encoding, "surrogateescape"), encoding))
    return None


def read_all(lines: io.TextIOWrapper, name: str, start: str = "") -> str:
    """`start` and what follows it in the file. Raises InputError, with the line, for bytes that are not text."""
    text = start + lines.read()
    if undecodable(text, lines):
        for number, line in enumerate(text.split("\n"), 1):
            if problem := undecodable(line, lines):
                raise InputError(problem.at(f"{name}, line {number}"))
    return text


def _detect_encoding(start: bytes, name: str) -> str:
    """The encoding by the byte order mark, else UTF-8. Raises InputError for UTF-16 without a mark."""
    if marked := next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None):
        return marked
    for position, encoding in enumerate(("utf-16-be", "utf-16-le")):
        zeros, others = start[position::2].count(0), start[1 - position :: 2].count(0)
        if zeros > 0.4 * len(start) and not others:
            raise InputError(
                f"{name}: every other byte is zero, so it is UTF-16 without a byte order mark; name the encoding with "
                f"--encoding {encoding}"
            )
    return "utf-8-sig"


def _describe_undecodable(opener: Callable[[], IO[bytes]], encoding: str, name: str) -> str:
    """A message with the first line that is not text in this encoding, and encodings that fit it."""
    decoder, number = codecs.getincrementaldecoder(encoding)(), 1
    line = b""
    with opener() as raw:
        try:
            for line in raw:
                number += decoder.decode(line).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
    return f"{name}, line {number}: {_not_text(line, encoding)}"


def _not_text(line: bytes, encoding: str) -> str:
    """A message on a line that is not text in this encoding, with encodings that fit it."""
    fitting = [other for other in LIKELY if other != encoding and _fits(line, other)]
    if "euc-kr" in fitting and "cp949" in fitting:
        fitting.remove("cp949")  # a superset of euc-kr
    return f"not {encoding.removesuffix('-sig').upper()} text; name its encoding with --encoding, e.g. {' or '.join(fitting)}"


def _fits(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _begins(start: bytes, encoding: str) -> bool:
    """Whether the start of a file is text in this encoding; its last character may be cut off."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return False
    return True
