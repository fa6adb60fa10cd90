"""What a file is, by its first bytes: an archive, compressed, or another format that is not text; JSON, a table, markup."""

import codecs
import json
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from lmtrain.errors import visible

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_EXCEL = "an Excel workbook; save its sheet as CSV (UTF-8)"
_OFFICE = "an old Excel, Word or HWP document; save it as CSV (UTF-8) or as plain text"
_TAR = "a tar archive; unpack it (tar -xf) and name what was in it"
_ZIP = "a zip archive; unpack it (unzip) and name what was in it"
_7Z = "a 7-Zip archive; unpack it (7z x) and name what was in it"
_RAR = "a RAR archive; unpack it (unrar x) and name what was in it"
_COMPRESSED = "compressed with {}; decompress it, or give a file whose name ends in {}"
_UNREADABLE = f"compressed with {{}}; decompress it, or compress it anew as {', '.join(COMPRESSIONS)}"

SUFFIXES = {
    **dict.fromkeys((".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"), _TAR),
    **{".zip": _ZIP, ".7z": _7Z, ".rar": _RAR},
    **{".br": _UNREADABLE.format("Brotli"), ".lz4": _UNREADABLE.format("LZ4")},
    **{".z": _UNREADABLE.format("compress"), ".lzma": _UNREADABLE.format("LZMA"), ".sz": _UNREADABLE.format("Snappy")},
}
"""Suffix -> what a file with such a name is, and what to do."""

SIGNATURES = (
    (rb"\x1f\x8b\x08", _COMPRESSED.format("gzip", ".gz")),
    (rb"BZh[1-9]1AY&SY", _COMPRESSED.format("bzip2", ".bz2")),
    (rb"\xfd7zXZ\0", _COMPRESSED.format("xz", ".xz")),
    (rb"\x28\xb5\x2f\xfd", _COMPRESSED.format("zstd", ".zst")),
    (rb"\x04\x22\x4d\x18", SUFFIXES[".lz4"]),
    (rb"\x1f\x9d", SUFFIXES[".z"]),
    (rb".{257}ustar", _TAR),
    (rb"PK(\x03\x04|\x05\x06)", _ZIP),
    (rb"7z\xbc\xaf\x27\x1c", _7Z),
    (rb"Rar!\x1a\x07", _RAR),
    (rb"PAR1[^ -~\n]", "a Parquet file; let its name end in .parquet"),
    (rb"ARROW1\0", "an Arrow file; let its name end in .arrow"),
    (rb"%PDF-", "a PDF document; extract its text first"),
    (rb"\{\\rtf", "an RTF document; save it as plain text"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OFFICE),
    (rb"SQLite format 3\0", "an SQLite database; export the table as CSV"),
)
"""(pattern of the first bytes, what the file is and what to do)."""

_IN_ZIP = (
    (b"xl/w", _EXCEL),
    (b"word/", "a Word document; save it as plain text"),
    (b"ppt/", "a PowerPoint file; save it as plain text"),
    (b"mimetype", "an OpenDocument or EPUB file; save it as plain text or as CSV"),
)
"""(name of a member of a zip archive, what such a file is and what to do)."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding. UTF-32 comes first, because its mark starts with that of UTF-16."""

START = 1 << 16
"""Bytes that are looked at."""

MUCH_BINARY = 0.1
"""Share of NUL bytes from which on a file is binary data."""


def not_text(start: bytes) -> str | None:
    """What a file is that is not text, and what to do, by its first START bytes; None for what may be text."""
    found = next((what for pattern, what in SIGNATURES if re.match(pattern, start, re.DOTALL)), None)
    if found == _ZIP:
        return next((what for name, what in _IN_ZIP if name in start), _ZIP)
    if start[:2] == b"\x1f\x8b" and _is_tar_in_gzip(start):
        return _TAR
    return found


def by_name(name: str) -> str | None:
    """What a file is that cannot be read, by its suffix, and what to do; None for other names."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def is_binary(start: bytes) -> bool:
    """Whether many bytes are NUL, without the byte order mark of UTF-16 or UTF-32, where they are parts of characters."""
    return start.count(0) > MUCH_BINARY * len(start) and not is_marked(start)


def is_marked(start: bytes) -> bool:
    """Whether a text begins with the byte order mark of UTF-16 or UTF-32."""
    return start.startswith(tuple(BYTE_ORDER_MARKS))


def _is_tar_in_gzip(start: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(start, 512)[257:262] == b"ustar"
    except zlib.error:
        return False


# --- text ------------------------------------------------------------------------------------------------------------

JSON_OBJECT = re.compile(r'\s*(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)', re.MULTILINE)
"""The beginning of JSON objects, one or several, or of an array of them."""

MARKUP = (
    (r"WARC/\d", "WARC"),
    (r"<!doctype html|<html\b", "HTML"),
    (r"(?=<.*<tmx\b|<tmx\b)", "TMX"),
    (r"<\?xml\b", "XML"),
    (r"<(?P<tag>(?!s>)\w+)\b(?=[^<>]*>.*</(?P=tag)>)", "XML or SGML"),
)
"""(pattern of the beginning of a text, the name of its markup)."""

SEPARATORS = {"\t": ".tsv", ",": ".csv", ";": ".csv"}
"""What separates the columns of a table -> the suffix of such a file."""

DECLARED = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""The first line of a table that Excel writes."""


@dataclass(frozen=True)
class Content:
    """What a text contains."""

    form: str
    """The suffix of such a file."""
    remark: str = ""
    """What to say about it."""


def recognise(start: str, columns: Collection[str], takes_text: bool, takes_tabs: bool = False) -> Content:
    """What a text without a telling name contains, by its first lines.

    `columns` are the columns that flags name; `takes_text` is whether text without columns can be used; with
    `takes_tabs` columns separated by tabs are what is expected in a text (CoNLL).
    """
    if JSON_OBJECT.match(start):
        lines = _has_json_lines(start)
        return Content(
            ".jsonl" if lines else ".json", f"is read as JSON{' lines' if lines else ''}, which it contains"
        )
    separator, header = _header(start, columns)
    if separator and (columns or not takes_tabs):
        suffix = SEPARATORS.get(separator, ".csv")
        listed = ", ".join(visible(cell, 40) for cell in header[:8]) + (", …" if header[8:] else "")
        if columns or not takes_text:
            return Content(suffix, f"is read as a table, which it contains; its columns are {listed}")
        remark = (
            f"looks like a table (columns {listed}), but is read as text; name its column, or call the file {suffix}"
        )
        return Content(".txt", remark)
    markup = next((name for pattern, name in MARKUP if re.match(rf"\s*(?:{pattern})", start, re.I | re.S)), None)
    return Content(".txt", f"looks like {markup}, and its tags are read as text; extract the text" if markup else "")


def _has_json_lines(start: str) -> bool:
    """Whether each line is a JSON value, rather than a part of one."""
    first, end, rest = start.lstrip().partition("\n")
    if not end:
        return True  # the line is longer than what is looked at
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return JSON_OBJECT.match(rest.partition("\n")[0]) is not None  # only the first line is broken
    return True


def _header(start: str, columns: Collection[str]) -> tuple[str, list[str]]:
    """(separator, names of the columns) of a table; ("", []) where there is none.

    A table declares its separator as Excel does, or its header has the wanted `columns`, or its first lines, at least
    three, have the same number of tabs.
    """
    lines = [line for line in start.split("\n")[:20] if line.strip()]
    declared = DECLARED.fullmatch(lines[0]) if lines[1:] else None
    if declared:
        return declared[1], [cell.strip('"') for cell in lines[1].split(declared[1])]
    for separator in SEPARATORS if columns and lines else ():
        cells = [cell.strip().strip('"') for cell in lines[0].split(separator)]
        if cells[1:] and set(columns) <= set(cells):
            return separator, cells
    tabs = {line.count("\t") for line in lines}
    return ("\t", lines[0].split("\t")) if len(tabs) == 1 and tabs != {0} and lines[2:] else ("", [])
