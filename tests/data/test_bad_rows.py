"""A row that cannot be used stops the run with its file and line, or is left out and counted, in every format."""

import json
from pathlib import Path

import pytest

from lmtrain.config.data import ClmData, PairData
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

ROWS = [json.dumps({"text": f"row {n}"}) for n in range(150)]


def load(name: str, content: bytes, data: type = ClmData, **options: object) -> Rows:
    Path(name).write_bytes(content)
    return reading.load([name], data(train=["x"], **options))


@pytest.mark.parametrize("place", [0, 1, 120, 150])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut o', ", column 10: not JSON"),
        (b"{", ", column 2: not JSON"),
        (b'["text"]', ": a row must be an object {…}, not list"),
        (b'{"text": 1, "text": 2}', ": duplicate key 'text'"),
        (b"[" * 100_000, ": nested too deeply"),
        (b'{"text": "caf\xe9 \xff"}', ": not UTF-8 text; name its encoding with --encoding, e.g. latin-1"),
        (b'{"text": "\\ud800"}', ", column 'text': contains a lone surrogate"),
        (b'{"id": 7}', ", column 'text': is missing"),
    ],
)
def test_lines_of_json(line: bytes, reason: str, place: int):
    if place == 0 and line.startswith(b"["):
        return  # the beginning of an array
    lines = [row.encode() for row in ROWS]
    lines.insert(place, line)
    content = b"\n".join(lines)
    with pytest.raises(InputError) as caught:
        load("a.jsonl", content)
    message = str(caught.value)
    assert f"a.jsonl, line {place + 1}{reason}" in message and message.endswith("; --on-bad drop leaves such rows out")
    rows = load("a.jsonl", content, on_bad="drop")
    assert rows.values == [json.loads(row)["text"] for row in ROWS] and rows.ledgers[0].rows_bad == 1
    assert any(f"a.jsonl, line {place + 1}{reason}" in note for note in rows.notes)


@pytest.mark.parametrize(("unit", "values"), [("line", ["a", "b", "d"]), ("paragraph", ["d"]), ("document", 4)])
def test_lines_of_text_in_another_encoding(unit: str, values: object):
    content = b"a\nb\n\xff\xfe\n\nd\n"
    with pytest.raises(InputError, match=r"a\.txt, line [13]: not UTF-8 text; .*; --on-bad drop"):
        load("a.txt", content, sample_by=unit)
    rows = load("a.txt", content, sample_by=unit, on_bad="drop")
    assert rows.ledgers[0].rows_bad == 1 and (rows.values == values or len(rows) == values)


@pytest.mark.parametrize("encoding", ["euc-kr", "cp949", "shift_jis"])
def test_other_encodings_go_on_after_a_bad_line(encoding: str):
    good = {"shift_jis": "日本語"}.get(encoding, "한국어")
    lines = [good.encode(encoding), b"\xff\xff", good.encode(encoding)]
    rows = load("a.txt", b"\n".join(lines), sample_by="line", encoding=encoding, on_bad="drop")
    assert rows.values == [good, good] and rows.ledgers[0].rows_bad == 1


def test_objects_in_an_array_are_rows_of_it():
    content = json.dumps([{"text": "a"}, 7, {"text": "b"}], indent=1).encode()
    with pytest.raises(InputError, match=r"a\.json, row 2: a row must be an object {…}, not int; --on-bad drop"):
        load("a.json", content)
    assert load("a.json", content, on_bad="drop").values == ["a", "b"]


def test_an_array_in_another_encoding_is_refused_with_its_line():
    with pytest.raises(InputError, match=r"a\.json, line 3: not UTF-8 text; .* e\.g\. latin-1"):
        load("a.json", b'[{"text": "a"},\n{"text": "b"},\n{"text": "caf\xe9"}]', on_bad="drop")


def test_nothing_but_bad_rows_is_no_text():
    with pytest.raises(InputError, match=r"a\.jsonl: no usable text \(3 bad rows\)"):
        load("a.jsonl", b"{\n{\n{\n", on_bad="drop")


def test_a_pair_is_bad_if_one_of_its_lines_is():
    Path("a.de").write_bytes(b"ja\nn\xe9in\nja\n")
    Path("a.en").write_bytes(b"yes\nno\nyes\n")
    section = PairData(train=["a"], source_lang="de", target_lang="en", on_bad="drop")
    rows = reading.load(["a"], section)
    assert rows.values == [("ja", "yes"), ("ja", "yes")] and rows.ledgers[0].rows_bad == 1
    with pytest.raises(InputError, match=r"a, line 2: a\.de: not UTF-8 text"):
        reading.load(["a"], section.model_copy(update={"on_bad": "error"}))


@pytest.mark.parametrize("label", [["a"], {"a": 1}, None, " "])
def test_labels_that_are_no_text(label: object):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": label}, {"text": "z", "label": 0.5}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with pytest.raises(InputError, match=r"a\.jsonl, line 2, column 'label'"):
        load("a.jsonl", content, LabelledData)
    found = load("a.jsonl", content, LabelledData, on_bad="drop")
    assert found.values == [("x", "a"), ("z", "0.5")]
    assert "a.jsonl: 1 numbers in 'label' are used as text" in found.notes
