"""Reads files and Hub datasets as (line or row number, record).

Text formats are read with the standard library, line by line, so that errors name the line and values stay unchanged
(a CSV cell "NA" or "007" is text). Parquet and Arrow are read with pyarrow, Hub datasets with datasets.
"""

import csv
import errno
import lzma
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from lmtrain.data.arrow_json import row_decoder
from lmtrain.data.contents import COMPRESSIONS
from lmtrain.data.json_files import read_json, read_json_lines
from lmtrain.data.text_files import Numbered, decoded, open_bytes, printable
from lmtrain.errors import InputError, visible

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
            yield number, {"text": line}


def _read_csv(opener: Callable[[], IO[bytes]], encoding: str | None, name: str, separator: str) -> Numbered:
    csv.field_size_limit(sys.maxsize)
    # Tab-separated files have no quoting: a quotation mark is an ordinary character.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    with decoded(opener, encoding, name, newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
                raise InputError(
                    f"{name}, line 1: only one column '{visible(header[0])}'; a .csv file is separated by commas, "
                    "a .tsv file by tabs"
                )
            twice = [column for column in header if header.count(column) > 1]
            if twice:
                raise InputError(f"{name}, line 1: duplicate column '{visible(twice[0])}'")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{name}, line {reader.line_num}: {len(cells)} cells, but the header has "
                        f"{len(header)}: {', '.join(map(visible, header))}"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{name}, line {reader.line_num}: {error}") from None


READERS: dict[str, Callable[..., Numbered]] = {
    **dict.fromkeys(TEXT, read_text),
    **dict.fromkeys(JSON_LINES, read_json_lines),
    **dict.fromkeys(JSON, read_json),
    **dict.fromkeys(CSV, partial(_read_csv, separator=",")),
    **dict.fromkeys(TSV, partial(_read_csv, separator="\t")),
}


def read_columnar(path: Path, form: str) -> Numbered:
    """Read a Parquet or Arrow file; `form` is `.parquet` or `.arrow`. Raises InputError."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        source: Any = str(path)
        if path.suffix.lower() in COMPRESSIONS:
            with open_bytes(path) as raw:
                source = pyarrow.BufferReader(raw.read())
        if form in PARQUET:
            batches = pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1000)
        else:
            batches = _arrow_batches(source)
        for batch in batches:
            names = batch.schema.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise InputError(f"{printable(path)}: duplicate column '{visible(twice)}'")
            for record in map(row_decoder(batch.schema), batch.to_pylist()):
                number += 1
                yield number, record
    except PermissionError as error:
        raise InputError(f"{printable(path)}: {os.strerror(error.errno or errno.EACCES)}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{printable(path)}, after row {number}: text that is not UTF-8, which {form[1:]} requires"
        ) from None
    except (pyarrow.ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, OverflowError) as error:
        reason = visible(str(error).split("\n")[0], 200)
        raise InputError(f"{printable(path)}: damaged or not {form[1:]}: {reason}") from None


def _arrow_batches(source: Any) -> Iterator[Any]:
    """Record batches of an Arrow file in the stream format (which datasets writes) or the file format."""
    import pyarrow

    try:
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(index) for index in range(file.num_record_batches))
    except pyarrow.ArrowInvalid:
        stream = pyarrow.memory_map(source) if isinstance(source, str) else source
        yield from pyarrow.ipc.open_stream(stream)


def read_dataset(name: str, config: str | None, split: str) -> Numbered:
    """Read a split of a Hub or local dataset, with class names instead of numbers. Raises InputError.

    `validation` stands for the split for validation, or else for testing.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if split == "validation":
            names = datasets.get_dataset_split_names(name, config)
            split = next((s for s in ("validation", "valid", "dev", "test") if s in names), split)
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets and the Hub client raise dozens of types; all mean that there is no data
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise InputError(
            f"{name}: no such file, and it cannot be loaded as a Hub dataset: {visible(reason, 200)}"
        ) from None
    named = _class_names(table.features)
    for number, record in enumerate(table, 1):
        yield number, {**record, **{column: name(record[column]) for column, name in named.items()}}


def _class_names(features: Any) -> dict[str, Callable[[Any], Any]]:
    """Column -> function from class numbers to names, for columns of class numbers or of lists of them."""
    named: dict[str, Callable[[Any], Any]] = {}
    for column, feature in (features or {}).items():
        if names := getattr(feature, "names", None):
            named[column] = partial(_name, names)
        elif names := getattr(getattr(feature, "feature", None), "names", None):
            named[column] = partial(_each_name, names)
    return named


def _name(names: list[str], number: int | None) -> Any:
    """The name of a class; None for -1, which marks rows without a class in some data sets."""
    return names[number] if number is not None and 0 <= number < len(names) else None


def _each_name(names: list[str], numbers: list[int] | None) -> Any:
    return numbers and [_name(names, number) for number in numbers]
