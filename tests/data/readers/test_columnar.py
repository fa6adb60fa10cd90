"""Of Parquet, Arrow and Hub data only the wanted columns are converted, and what cannot be converted is a bad row."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from lmtrain.config.data import ClmData, PairData
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.columns import BadRow
from lmtrain.data.readers import columnar
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

YEAR = 365 * 24 * 3600 * 1_000_000
ODD = {
    "year 200,000": pa.array([0, 200_000 * YEAR], pa.timestamp("us")),
    "nanoseconds": pa.array([0, 1], pa.timestamp("ns")),
    "before year 1": pa.array([0, -9_000 * YEAR], pa.timestamp("us")),
    "time zone": pa.array([0, 0], pa.timestamp("us", "No/Where")),
    "long duration": pa.array([0, 2**62], pa.duration("ms")),
    "not UTF-8": pa.StringArray.from_buffers(2, *pa.array([b"ok", b"\xff\xfe"]).buffers()[1:]),
    "nested": pa.StructArray.from_arrays([pa.array([0, 200_000 * YEAR], pa.timestamp("us"))], ["at"]),
    "list": pa.array([[0], [200_000 * YEAR]], pa.list_(pa.timestamp("us"))),
}
TEXT = pa.array(["one", "two"])


def save(name: str, **columns: pa.Array) -> str:
    table = pa.Table.from_arrays([*columns.values()], [*columns])
    if name.endswith(".parquet"):
        pa.parquet.write_table(table, name)
    else:
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return name


def load(name: str, data: type = ClmData, **options: object) -> Rows:
    return reading.load([name], data(train=["x"], **options))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("odd", ODD)
def test_a_column_that_nobody_asked_for_is_not_converted(odd: str, form: str):
    doc = pa.StructArray.from_arrays([TEXT, ODD[odd]], ["body", "odd"])
    name = save(f"a.{form}", odd=ODD[odd], text=TEXT, doc=doc)
    assert load(name).values == ["one", "two"]
    assert load(name, text_column="doc.body").values == ["one", "two"]
    assert load(name, text_column="{text}: {doc.body}").values == ["one: one", "two: two"]
    assert load(name, PairData, source_column="text", target_column="doc.body").values == [
        ("one", "one"),
        ("two", "two"),
    ]


def test_a_value_that_cannot_be_converted_is_a_bad_row_where_it_is_wanted():
    name = save("a.parquet", text=ODD["not UTF-8"], when=ODD["year 200,000"])
    with pytest.raises(InputError, match=r"a\.parquet, row 2, column 'text': is not UTF-8 text; --on-bad drop"):
        load(name)
    rows = load(name, on_bad="drop")
    assert rows.values == ["ok"] and rows.ledgers[0].rows_bad == 1
    with pytest.raises(InputError, match=r"row 1, column 'when': is datetime .*, not text"):
        load(name, text_column="when")
    with pytest.raises(InputError, match=r"no column 'wen'; it has text, when; did you mean 'when'"):
        load(name, text_column="wen")


def test_a_name_that_occurs_twice_is_refused_only_where_it_is_wanted():
    table = pa.Table.from_arrays([TEXT, TEXT, TEXT], ["a", "b", "b"])
    pa.parquet.write_table(table, "a.parquet")
    assert load("a.parquet", text_column="a").values == ["one", "two"]
    with pytest.raises(InputError, match=r"a\.parquet: duplicate column 'b'"):
        load("a.parquet", text_column="b")


def test_rows_are_as_pyarrow_converts_them():
    content: list[dict[str, Any]] = [
        {
            "n": 1,
            "s": {"x": [1, 2], "y": {"z": "a"}},
            "m": [{"role": "user", "content": "hi"}],
            "t": datetime(2020, 1, 2),
        },
        {"n": None, "s": None, "m": None, "t": None},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(content), "a.parquet")
    (_, first), (number, second) = columnar.read_columnar(Path("a.parquet"), ".parquet")
    assert not isinstance(first, BadRow) and not isinstance(second, BadRow)
    assert first["s"]["y"]["z"] == "a" and first["s"]["x"] == [1, 2] and first["m"] == content[0]["m"]
    assert dict(second) == content[1] and number == 2 and list(first) == ["n", "s", "m", "t"] and "x" not in first


def test_numbers_as_labels_and_targets_are_text_and_counted():
    save("a.parquet", source=TEXT, target=pa.array([1.5, 2.0]), text=TEXT, label=pa.array([3, 4]))
    pairs, labelled = load("a.parquet", PairData), load("a.parquet", LabelledData)
    assert pairs.values == [("one", "1.5"), ("two", "2.0")] and labelled.values == [("one", "3"), ("two", "4")]
    assert "a.parquet: 2 numbers in 'target' are used as text" in pairs.notes
    assert "a.parquet: 2 numbers in 'label' are used as text" in labelled.notes


def test_missing_numbers_are_bad_rows():
    save("a.parquet", text=TEXT, label=pa.array([float("nan"), 1.0]))
    with pytest.raises(InputError, match=r"row 1, column 'label': is nan, not a number"):
        load("a.parquet", LabelledData)
