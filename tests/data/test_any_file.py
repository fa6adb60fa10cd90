"""Five hundred random files, whole and broken: each is read as an independent reader reads it, or refused in a sentence."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lmtrain.config.data import ClmData
from lmtrain.data.reading import load
from lmtrain.errors import LmtrainError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.train_tokenizer import train_tokenizer

FILES = 500
WORDS = [
    "the cat",
    "고양이가",
    "猫が",
    "naïve",
    "🙂",
    'say "so"',
    "a,b",
    "x;y",
    "tab\there",
    "1",
    "007",
    "null",
    "NA",
    "{x}",
    "<p>",
    "#",
]
COLUMNS = ["text", "id", "제목", "v1", "a b", "a.b", "label", "Unnamed: 0"]
FORMATS = ["txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
BREAKS = ["cut", "flip", "insert NUL", "drop a line", "no column"]


@dataclass
class Case:
    """A file, how to read it, and what is done to it."""

    form: str
    rows: list[dict[str, Any]]
    column: str
    encoding: str
    suffix: str
    broken: str | None
    content: bytes = b""
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"data.{self.form}{self.suffix}"


def text_of(random_: random.Random, line_breaks: bool) -> str:
    words = random_.choices(WORDS, k=random_.randint(0, 6))
    return (
        (random_.choice([" ", " ", "\n"]) if line_breaks else " ")
        .join(words)
        .replace("\t", " " if not line_breaks else "\t")
    )


def case(seed: int) -> Case:
    random_ = random.Random(seed)
    form = random_.choice(FORMATS)
    column = "text" if form == "txt" else random_.choice(COLUMNS)
    names = [column, *random_.sample([name for name in COLUMNS if name != column], random_.randint(0, 3))]
    random_.shuffle(names)
    free = form not in ("txt", "tsv")
    rows = [{name: text_of(random_, free) for name in names} for _ in range(random_.randint(1, 8))]
    korean = all(_encodes(value, "cp949") for row in rows for value in row.values())
    encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", *(["cp949"] if korean else [])]
    encoding = "utf-8" if form in ("parquet", "arrow") else random_.choice(encodings)
    suffix = random_.choice(["", "", *COMPRESS])
    made = Case(form, rows, column, encoding, suffix, random_.choice([None, None, None, *BREAKS]))
    content = _written(made, random_)
    content = _broken(content, made.broken, random_)
    made.content = COMPRESS[suffix](content)
    made.flags = {"text_column": "missing" if made.broken == "no column" else column}
    if form == "txt":
        made.flags = {"sample_by": random_.choice(["line", "document"])}
    if encoding == "cp949":
        made.flags["encoding"] = "cp949"
    return made


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _written(made: Case, random_: random.Random) -> bytes:
    rows = made.rows
    if made.form in ("parquet", "arrow"):
        sink, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
        if made.form == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        return sink.getvalue()
    if made.form == "txt":
        text = "".join(row["text"] + "\n" for row in rows)
    elif made.form == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=random_.random() < 0.5) + "\n" for row in rows)
    elif made.form == "json":
        text = json.dumps(rows, ensure_ascii=False, indent=random_.choice([None, 2]))
    else:
        sheet = io.StringIO(newline="")
        separator = "," if made.form == "csv" else "\t"
        writer_ = csv.DictWriter(
            sheet, list(rows[0]), delimiter=separator, lineterminator=random_.choice(["\n", "\r\n"])
        )
        writer_.writeheader()
        writer_.writerows(rows)
        text = sheet.getvalue()
    return text.encode(made.encoding)


def _broken(content: bytes, how: str | None, random_: random.Random) -> bytes:
    place = random_.randrange(len(content)) if content else 0
    if how == "cut":
        return content[:place]
    if how == "flip":
        return content[:place] + bytes([random_.randrange(256)]) + content[place + 1 :]
    if how == "insert NUL":
        return content[:place] + b"\0" + content[place:]
    if how == "drop a line":
        lines = content.splitlines(keepends=True)
        return b"".join(lines[:-1]) if lines else content
    return content


# --- an independent reader -------------------------------------------------------------------------------------------


def texts_by_hand(path: Path, made: Case) -> list[str] | None:
    """The texts of the file, in a few lines of other libraries; None where these cannot read it."""
    opener = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[made.suffix]
    encoding = made.encoding.replace("utf-8-sig", "utf-8").replace("utf-8", "utf-8-sig")
    column = made.flags.get("text_column", "text")
    try:
        if made.form in ("parquet", "arrow"):
            with opener(path, "rb") as raw:
                source = pyarrow.BufferReader(raw.read())
            table = (
                pyarrow.parquet.read_table(source, columns=[column])
                if made.form == "parquet"
                else pyarrow.ipc.open_stream(source).read_all()
            )
            return table.column(column).to_pylist()
        with opener(path, "rt", encoding=encoding, newline="" if made.form in ("csv", "tsv") else None) as file:
            if made.form == "txt":
                return file.read().split("\n") if made.flags["sample_by"] == "line" else [file.read()]
            if made.form == "jsonl":
                return [json.loads(line)[column] for line in file if line.strip()]
            if made.form == "json":
                return [row[column] for row in json.load(file)]
            rows = list(csv.reader(file, delimiter="," if made.form == "csv" else "\t"))
            header, *cells = [row for row in rows if row]
            return [dict(zip(header, row, strict=True))[column] for row in cells]
    except Exception:  # whatever another library says of a broken file
        return None


@cache
def byte_tokenizer():
    return train_tokenizer("byte", [], OBJECTIVES["clm"].special_tokens)


def texts_by_lmtrain(path: Path, made: Case) -> list[str] | None:
    """The decoded rows of ids; None where the file is refused."""
    data = ClmData(train=[str(path)], packing=False, **made.flags)
    try:
        rows = load(data.train, data)
        examples = OBJECTIVES["clm"].encode(rows, byte_tokenizer(), data, Limits(None), False)
    except LmtrainError as error:
        message = str(error)
        assert path.name in message or "--" in message
        assert "\n" not in message.strip()
        return None
    assert examples.ledger.balances()
    return [byte_tokenizer().decode(row.tolist(), skip_special_tokens=True) for row in examples.columns["input_ids"]]


@pytest.mark.parametrize("seed", range(FILES))
def test_a_file_is_read_as_another_reader_reads_it_or_refused(seed: int, tmp_path: Path):
    made = case(seed)
    path = tmp_path / made.name
    path.write_bytes(made.content)
    found, wanted = texts_by_lmtrain(path, made), texts_by_hand(path, made)
    if found is None:
        used = [text for text in wanted or [] if isinstance(text, str) and text.strip()]
        assert made.broken or not used, "a whole file with text is refused"
        return
    assert wanted is not None
    kept = [text for text in wanted if isinstance(text, str) and text.strip()]
    assert found == kept
