"""Reads text files as (line or row number, record), by their format.

The standard library reads them line by line, so that errors name the line and values stay unchanged (a CSV cell "NA" or
"007" is text). columnar.py reads Parquet, Arrow and Hub datasets.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from lmtrain.data.readers.contents import COMPRESSIONS
from lmtrain.data.readers.delimited import read_delimited
from lmtrain.data.readers.json_files import read_json, read_json_lines
from lmtrain.data.readers.text_files import Numbered, decoded, undecodable

TEXT, PARQUET, ARROW = (".txt",), (".parquet",), (".arrow",)
JSON_LINES, JSON, CSV, TSV = (".jsonl", ".ndjson"), (".json",), (".csv",), (".tsv",)
FORMATS = TEXT + JSON_LINES + JSON + CSV + TSV + PARQUET + ARROW

LONE_RETURNS = "lines that end with a carriage return alone, which becomes a line feed: {count}"
NULS = "lines with NUL characters, which stay in the text: {count}"
END_MARKS = "end marks '{mark}', which part no documents: {count}; to part them, give each as a row (.jsonl)"

END_MARK = re.compile(
    r"<\|?end_?of_?text\|?>|</s>|<eos>"
    r"|^(?:<\|[^|<>\s]{1,30}\|>|</?(?:s|eos|eod|eot|sep|end|doc)>|(?-i:<[A-Z_]{2,20}>)|\[(?:EOS|EOD|EOT|SEP|END)\])\s*$",
    re.IGNORECASE,
)
"""Marks at the end of a document in text files: of GPT-2 and T5 anywhere, others alone on a line."""


def format_of(path: Path) -> str | None:
    """The format by the suffix: `.csv` for `x.csv` and `x.csv.gz`; None for unknown suffixes."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_text(
    opener: Callable[[], IO[bytes]], encoding: str | None, name: str, counts: Counter[str] | None = None
) -> Numbered:
    """The lines of a text; `counts` counts what is to be said about them (remarks.py)."""
    counts = Counter() if counts is None else counts
    counts.clear()
    # newline="": \n, \r\n and \r end a line; U+2028, form feeds and similar do not end one.
    with decoded(opener, encoding, name, newline="") as lines:
        for number, line in enumerate(lines, 1):
            if "\r" in line:
                if line[-1] == "\r":
                    counts[LONE_RETURNS] += 1
                line = line.rstrip("\r\n") + "\n"
            if "\0" in line:
                counts[NULS] += 1
            if "<" in line or line[0] == "[":
                for mark in END_MARK.findall(line):
                    counts[END_MARKS.replace("{mark}", mark.strip())] += 1
            yield number, undecodable(line, lines) or {"text": line}


READERS: dict[str, Callable[..., Numbered]] = {
    **dict.fromkeys(TEXT, read_text),
    **dict.fromkeys(JSON_LINES, read_json_lines),
    **dict.fromkeys(JSON, read_json),
    **dict.fromkeys(CSV, partial(read_delimited, usual=",")),
    **dict.fromkeys(TSV, partial(read_delimited, usual="\t")),
}
