"""Text files without a telling name: JSON, tables and markup in them are seen, and what is odd in them is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtrain.config.data import ClmData, PairData, Split
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading, rows
from lmtrain.data.readers import contents
from lmtrain.errors import InputError

ROWS = [{"id": i, "text": f"article {i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = [row["text"] for row in ROWS]


def load(name: str, section: type[Split] = ClmData, **options: Any) -> rows.Rows:
    options = options if section is not ClmData else {"packing": False, **options}
    return reading.load([name], section(train=["x"], **options))


def remark(found: rows.Rows, name: str) -> str:
    """The only note about this file, apart from that on its columns."""
    (note,) = (note for note in found.notes if note.startswith(f"{name}: ") and "using column" not in note)
    return note


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wiki_00", "a.txt", "a.text", "a.data", "a"])
@pytest.mark.parametrize("options", [{}, {"text_column": "text"}])
@pytest.mark.parametrize(
    ("content", "form"),
    [
        (LINES, "JSON lines"),
        ("\ufeff" + LINES.replace("\n", "\r\n"), "JSON lines"),
        ("\n" + LINES, "JSON lines"),
        (json.dumps(ROWS) + "\n", "JSON lines"),
        (json.dumps(ROWS, indent=2), "JSON"),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS), "JSON"),
    ],
)
def test_json_is_read_as_rows_whatever_its_name(name: str, options: dict[str, str], content: str, form: str):
    Path(name).write_text(content, encoding="utf-8")
    found = load(name, **options)
    assert found.values == TEXTS
    assert remark(found, name) == f"{name}: is read as {form}, which it contains"


@pytest.mark.parametrize(
    "content",
    ["[Act 1]\nEnter a king.\n", "{not JSON}\n", '"a": 1\n', "{{ template }}\n", "[1, 2]\n[3]\n", "{\nint x;\n}\n"],
)
def test_a_bracket_alone_is_no_json(content: str):
    Path("a.txt").write_text(content)
    found = load("a.txt")
    assert found.values == content.splitlines()
    assert found.notes == []


def test_a_long_first_line_is_a_row():
    row = {"text": "word " * contents.START}
    Path("wiki").write_text(json.dumps(row) + "\n" + LINES)
    assert load("wiki").values[-4:] == TEXTS


@pytest.mark.parametrize(
    ("options", "expected"), [({}, TEXTS), ({"text_column": "title"}, ["of all"]), ({"text_column": "text"}, TEXTS)]
)
def test_an_object_that_has_the_wanted_column_is_the_row(options: dict[str, str], expected: list[str]):
    Path("a.json").write_text(json.dumps({"title": "of all", "data": ROWS}))
    assert load("a.json", **options).values == expected


def test_a_row_may_contain_a_list_of_objects():
    Path("a.json").write_text(json.dumps({"text": "A dog.", "entities": [{"from": 2}]}))
    Path("b.json").write_text(json.dumps({"source": "a", "target": "b", "marks": [{"source": "c", "target": "d"}]}))
    assert load("a.json").values == ["A dog."]
    assert load("b.json", PairData).values == [("a", "b")]


# --- tables ----------------------------------------------------------------------------------------------------------

TABLE = [("id", "document", "label"), ("1", "good", "1"), ("2", "bad", "0"), ("3", "fine", "1")]


def table(separator: str = "\t", encoding: str = "utf-8") -> bytes:
    return "".join(separator.join(cells) + "\r\n" for cells in TABLE).encode(encoding)


@pytest.mark.parametrize("name", ["ratings_train.txt", "ratings"])
@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(","),
        table(encoding="utf-16"),
        table(encoding="utf-8-sig"),
        table(";"),
        b"sep=;\r\n" + table(";"),
    ],
)
def test_a_table_is_read_by_its_column(name: str, content: bytes):
    Path(name).write_bytes(content)
    found = load(name, text_column="document")
    assert found.values == ["good", "bad", "fine"]
    assert f"{name}: is read as a table, which it contains; its columns are id, document, label" in found.notes
    labelled = load(name, LabelledData, text_column="document", label_column="label")
    assert labelled.values == [("good", "1"), ("bad", "0"), ("fine", "1")]


def test_a_table_without_a_named_column_is_text_and_this_is_said():
    Path("ratings.txt").write_bytes(table())
    found = load("ratings.txt")
    assert found.values[0] == "id\tdocument\tlabel"
    assert remark(found, "ratings.txt") == (
        "ratings.txt: looks like a table (columns id, document, label), but is read as text; name its column, or call the "
        "file .tsv"
    )


def test_a_declared_separator_makes_a_table():
    Path("a.txt").write_bytes(b"sep=;\n" + table(";"))
    assert remark(load("a.txt"), "a.txt").startswith("a.txt: looks like a table (columns id, document, label)")


def test_a_missing_column_of_a_table_is_an_error_that_lists_its_columns():
    Path("ratings.txt").write_bytes(table())
    with pytest.raises(InputError, match="no column 'documents'; it has id, document, label; did you mean 'document'"):
        load("ratings.txt", text_column="documents")


def test_pairs_are_read_from_a_table_but_not_from_text():
    Path("pairs.txt").write_text("source\ttarget\na\tb\nc\td\n")
    assert load("pairs.txt", PairData).values == [("a", "b"), ("c", "d")]
    Path("text.txt").write_text("a\nb\nc\n")
    with pytest.raises(
        InputError, match=r"text.txt: is text, but rows of two columns are needed: .* STEM of two files"
    ):
        load("text.txt", PairData)


@pytest.mark.parametrize("content", ["one\ttab\nand none\nin these\n", "a, b\nc, d\ne, f\ng, h\n", "a\tb\n"])
def test_a_tab_or_commas_alone_make_no_table(content: str):
    Path("a.txt").write_text(content)
    assert load("a.txt").notes == []


def test_conll_is_not_taken_for_a_table():
    Path("a.txt").write_text("EU\tB-ORG\nrejects\tO\nlamb\tO\n")
    found = load("a.txt", LabelledData)
    assert found.values == [(["EU", "rejects", "lamb"], ["B-ORG", "O", "O"])]
    assert found.notes == []


# --- markup and odd characters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "markup"),
    [
        ("<!DOCTYPE html>\n<p>Hello</p>\n", "HTML"),
        ("<html lang='en'><body>", "HTML"),
        ('<?xml version="1.0"?>\n<feed/>', "XML"),
        ('<?xml version="1.0"?>\n<tmx version="1.4">', "TMX"),
        ("WARC/1.0\r\nWARC-Type: response\r\n", "WARC"),
        ('<doc id="1" title="T">\nT\n</doc>\n', "XML or SGML"),
    ],
)
def test_markup_is_named(content: str, markup: str):
    Path("a.txt").write_text(content, newline="")
    assert f"a.txt: looks like {markup}, and its tags are read as text; extract the text" in load("a.txt").notes
    with pytest.raises(InputError, match=f"a.txt: is text and looks like {markup}, but rows of two columns"):
        load("a.txt", PairData)


@pytest.mark.parametrize("content", ["<s>[INST] Hi [/INST] Hello</s>\n", "<- an arrow\n", "a < b\n", "<3 you\n"])
def test_an_angle_bracket_alone_is_no_markup(content: str):
    Path("a.txt").write_text(content)
    assert not any("looks like" in note for note in load("a.txt").notes)


@pytest.mark.parametrize("packing", [True, False])
def test_carriage_returns_alone_and_nul_characters_are_counted(packing: bool):
    Path("a.txt").write_bytes(b"a\rb\r\nc\n" + b"some more of the text\0\n" * 3)
    found = load("a.txt", packing=packing)
    assert [value.rstrip("\n") for value in found.values] == ["a", "b", "c", *["some more of the text\0"] * 3]
    assert found.notes == [
        "a.txt: lines that end with a carriage return alone, which becomes a line feed: 1",
        "a.txt: lines with NUL characters, which stay in the text: 3",
    ]
    Path("b.txt").write_bytes(b"a\r\nb\r\n")
    assert load("b.txt", packing=packing).notes == []


@pytest.mark.parametrize(
    "mark", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>", "[EOS]", "</doc>", "<eod>", "<STORY>"]
)
def test_end_marks_in_a_text_are_counted(mark: str):
    Path("a.txt").write_text(f"Once.\n{mark}\n" * 20)
    assert load("a.txt", packing=True).notes == [
        f"a.txt: end marks '{mark}', which part no documents: 20; to part them, give each as a row (.jsonl)"
    ]


def test_end_marks_within_lines_are_counted():
    Path("a.txt").write_text("Once.<|endoftext|>Twice.<|endoftext|>\n[INST] and <b> are none\n")
    assert remark(load("a.txt"), "a.txt").startswith("a.txt: end marks '<|endoftext|>', which part no documents: 2")


def test_what_is_true_of_several_files_is_said_once_with_the_counts_added():
    for name in ("a.txt", "b.txt", "c.txt"):
        Path(name).write_bytes(b"one\rtwo\r")
    found = reading.load(["a.txt", "b.txt", "c.txt#1"], ClmData(train=["x"]))
    assert found.notes == [
        "a.txt and 2 more: lines that end with a carriage return alone, which becomes a line feed: 5"
    ]
