"""Tables are read as spreadsheets and libraries write them; what is guessed or left out is said."""

import csv
import io
import random
from pathlib import Path

import pytest

from lmtrain.config.data import ClmData, MlmData, PairData
from lmtrain.data import reading
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

PAIRS = [("hello there", "hi"), ('a "quoted" word', "5, 6; 7"), ("두 번째", "NA"), ("l'été — dit-il", "007")]


def load(name: str, content: str | bytes, data: type = ClmData, **options: object) -> Rows:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return reading.load([name], data(train=["x"], **options))


def refusal(name: str, content: str | bytes, data: type = ClmData, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load(name, content, data, **options)
    return str(caught.value)


def written(rows: list[tuple[str, ...]], **dialect: object) -> str:
    stream = io.StringIO()
    csv.writer(stream, **{"lineterminator": "\n", **dialect}).writerows(rows)
    return stream.getvalue()


# --- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("source", "target"), ("id", "source", "target")])
def test_the_separator_is_found_whatever_the_suffix(suffix: str, mark: str, header: tuple[str, ...]):
    rows = [header, *((str(n), *pair)[-len(header) :] for n, pair in enumerate(PAIRS * 3))]
    found = load(f"a{suffix}", written(rows, delimiter=mark), PairData)
    assert found.values == PAIRS * 3
    usual = {".csv": ",", ".tsv": "\t"}[suffix]
    assert any("its cells are separated by" in note for note in found.notes) == (mark != usual)


@pytest.mark.parametrize("line", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_a_line_that_names_the_separator_is_no_header(line: str):
    found = load("a.csv", line + written([("source", "target"), *PAIRS], delimiter=";"), PairData)
    assert found.values == PAIRS and found.numbers.tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    "texts", [["a; b; c", "no mark", "one; mark"], ["a | b", "c", "d | e | f"], ["plain", "text", "without, a mark"]]
)
def test_a_table_of_one_column_stays_one(texts: list[str]):
    assert load("a.csv", written([("text",), *((text,) for text in texts)])).values == texts


def test_utf_16_with_tabs_as_excel_writes_it():
    assert (
        load("a.csv", written([("source", "target"), *PAIRS], delimiter="\t").encode("utf-16"), PairData).values
        == PAIRS
    )


# --- quotation marks in tab-separated files --------------------------------------------------------------------------

CELLS = [("plain", "x"), ('say "hi"', "y"), ("with\ttab", "z"), ("two\nlines", "w"), ("", "v"), ('"', "u"), ("'", "t")]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("plain_rows", [0, 3000])
def test_quoted_tsv_gives_what_was_written(quoting: int, plain_rows: int):
    rows = [("text", "label"), *[("nothing special", "0")] * plain_rows, *CELLS]
    found = load("a.tsv", written(rows, delimiter="\t", quoting=quoting), text_column="text")
    assert found.values[plain_rows:] == [text for text, _ in CELLS if text]


@pytest.mark.parametrize(
    "texts",
    [
        ['"A whole cell."', "plain", '"Another."'],
        ['"Opened and not closed', "plain", "and more"],
        ['"Quoted" at the start', 'and "in" the middle', 'at the "end"'],
        ['"', '""', 'x"'],
    ],
)
def test_a_mark_that_belongs_to_the_text_stays(texts: list[str]):
    lines = ["text\tlabel", *(f"{text}\t{n % 2}" for n, text in enumerate(texts * 5))]
    assert load("a.tsv", "\n".join(lines) + "\n", text_column="text").values == texts * 5


# --- columns without a name, and names that occur twice --------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [("v1,v2,,,", "ham,a message,,,", False), (",v2,", "0,a message,", True), ("v2,  ,v3", "a message,,", False)],
)
def test_columns_without_a_name_are_nobodys_concern(header: str, row: str, said: bool):
    found = load("a.csv", f"{header}\n{row}\n", text_column="v2")
    assert found.values == ["a message"] and any("without a name" in note for note in found.notes) == said


def test_text_in_columns_without_a_name_is_counted():
    found = load("a.csv", "v1,v2,,\nham,one,,\nham,two,lost,\nspam,three,,lost too\n", text_column="v2")
    assert found.values == ["one", "two", "three"]
    assert "a.csv: 2 rows have text in columns without a name, which are not read" in found.notes


def test_a_name_that_occurs_twice_is_refused_where_it_is_wanted():
    content = "id,text,note,note\n1,hello,a,b\n"
    assert load("a.csv", content).values == ["hello"]
    assert "a.csv: duplicate column 'note'" in refusal("a.csv", content, text_column="note")
    assert "a.csv: duplicate column 'note'" in refusal("a.csv", content, text_column="{text} {note}")
    assert "a.csv: duplicate column 'text'" in refusal("a.csv", "text,text\na,b\n")


def test_empty_cells_at_the_end_of_a_line_are_not_too_many():
    assert load("a.csv", "text,label\nhello,1,,\nworld,0\n").values == ["hello", "world"]


# --- files without a header ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "columns", "values"),
    [
        ("a.tsv", "Go.\t가.\nHi.\t안녕.\n", ["source", "target"], [("Go.", "가."), ("Hi.", "안녕.")]),
        ("a.tsv", "Go.\t가.\tCC-BY\nHi.\t안녕.\tCC-BY\n", ["source,target"], [("Go.", "가."), ("Hi.", "안녕.")]),
        ("a.csv", "1;Go.;가.\n2;Hi.;안녕.\n", ",source,target", [("Go.", "가."), ("Hi.", "안녕.")]),
        ("a.csv", "source,target\na,b\n", ["source", "target"], [("a", "b")]),
    ],
)
def test_columns_names_those_of_a_file_without_a_header(name: str, content: str, columns: object, values: list):
    assert load(name, content, PairData, columns=columns).values == values


def test_columns_that_are_not_named_are_said_and_names_too_many_refused():
    found = load("a.csv", "hello,x,y\n", MlmData, columns="text")
    assert "a.csv: --columns names 1 of 3 columns; the others are not read" in found.notes
    assert "a.csv, line 1: 1 cells, but --columns names 2: text, label" in refusal(
        "a.csv", "a\n", columns="text,label"
    )
    assert "a.csv, line 2: 1 cells, but the first line has 2" in refusal("a.csv", "a,b\nc\n", columns="text,label")


@pytest.mark.parametrize(
    ("content", "data", "options", "example"),
    [
        ("Go.\t가.\nHi.\t안녕.\n", PairData, {}, "source,target"),
        ("ham\thello\nspam\tbuy\n", ClmData, {"text_column": "text"}, "text"),
        ("I like cats 1\nI like cats 2\n", MlmData, {}, "text"),
    ],
)
def test_a_column_that_is_not_found_may_be_missing_in_the_header(
    content: str, data: type, options: dict[str, str], example: str
):
    message = refusal("a.tsv", content, data, **options)
    assert message.endswith(
        f"; the first line is read as the header: if it is a row, name the columns, e.g. --columns {example}"
    )


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("ham\tHow are you?", "spam\tBuy now!", True),
        ("ham\thello", "ham\tbye", True),
        ("12\t4.5", "13\t5.5", True),
        ("I was here today.\tx", "And you\ty", True),
        ("id\ttext", "1\thello", False),
        ("No.\tComment", "1\thello", False),
        ("sentence one\tsentence two", "a\tb", False),
    ],
)
def test_a_header_that_looks_like_a_row_is_said(header: str, row: str, said: bool):
    found = load("a.tsv", f"{header}\n{row}\n", text_column=header.split("\t")[1])
    assert any("its first line is the header" in note and "--columns" in note for note in found.notes) == said


# --- bad rows --------------------------------------------------------------------------------------------------------

GOOD = [f"{n},row number {n}" for n in range(20)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7,a, b", "3 cells, but the header has 2: id, text"),
        ("7", "1 cells, but the header has 2: id, text"),
        ('7,"not closed', "a quotation mark is not closed"),
        ('7,"closed" too early', "',' expected after '\"'"),
        (b"7,caf\xe9 \xff", "not UTF-8 text; name its encoding with --encoding, e.g. latin-1"),
    ],
)
@pytest.mark.parametrize("place", [0, 10, 20])
def test_a_line_that_cannot_be_read_is_a_bad_row(line: str | bytes, reason: str, place: int):
    lines = [row.encode() for row in ["id,text", *GOOD]]
    lines.insert(place + 1, line if isinstance(line, bytes) else line.encode())
    content = b"\n".join(lines) + b"\n"
    assert f"a.csv, line {place + 2}: {reason}; --on-bad drop leaves such rows out" in refusal("a.csv", content)
    found = load("a.csv", content, on_bad="drop")
    assert found.values == [row.split(",")[1] for row in GOOD] and found.ledgers[0].rows_bad == 1
    assert any(
        f"a.csv, line {place + 2}: {reason} (the first bad row that is left out)" == note for note in found.notes
    )


def test_what_a_reader_of_rows_gives_back_survives_any_cells():
    draw = random.Random(3)
    pieces = ['"', "\t", ",", ";", "\n", "a", "가", " ", "'", "|", "sep="]
    for _ in range(60):
        rows = [("text", "label"), *(("".join(draw.choices(pieces, k=5)) + "x", str(n)) for n in range(8))]
        found = load("a.csv", written(rows), text_column="text")
        assert found.values == [text for text, _ in rows[1:]]
