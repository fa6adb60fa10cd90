"""Reads Parquet and Arrow files and Hub datasets. Only the columns that are asked for become Python values."""

import errno
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lmtrain.data.columns import TWICE, BadRow
from lmtrain.data.readers.arrow_json import decoder
from lmtrain.data.readers.contents import COMPRESSIONS
from lmtrain.data.readers.text_files import Numbered, open_bytes, printable
from lmtrain.errors import InputError, visible

Convert = Callable[[Any], Any]


class ColumnarRow(Mapping[str, Any]):
    """One row of some columns. A value that cannot be converted raises BadRow, but only when it is asked for."""

    __slots__ = ("columns", "index")

    def __init__(self, columns: "_Columns", index: int):
        self.columns, self.index = columns, index

    def __getitem__(self, name: str) -> Any:
        value = self.columns.values(name)[self.index]
        if isinstance(value, BadRow):
            raise BadRow(f"column '{name}': {value}")
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.columns.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.arrays)

    def __len__(self) -> int:
        return len(self.columns.arrays)

    def __repr__(self) -> str:
        return repr(dict(self))


class _Columns:
    """Arrow arrays by name, each converted when it is first asked for."""

    def __init__(self, fields: list[Any], arrays: list[Any], rows: int, class_names: Mapping[str, Convert]):
        names = [field.name for field in fields]
        self.rows = rows
        decoders = {field.name: decoder(field) for field in fields if not _is_struct(field.type)}
        self.converters = {name: to_value for name, to_value in (decoders | {**class_names}).items() if to_value}
        self.arrays: dict[str, Any] = dict(zip(names, arrays, strict=True))
        self.converted: dict[str, list[Any]] = {name: [TWICE] * rows for name in names if names.count(name) > 1}

    def values(self, name: str) -> list[Any]:
        """The values of a column; a BadRow in place of each that cannot be converted."""
        if name not in self.converted:
            values = _convert(self.arrays[name])
            if to_value := self.converters.get(name):
                values = [value if isinstance(value, BadRow) else to_value(value) for value in values]
            self.converted[name] = values
        return self.converted[name]

    def __iter__(self) -> Iterator[ColumnarRow]:
        return (ColumnarRow(self, index) for index in range(self.rows))


def _is_struct(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind))


def _convert(array: Any) -> list[Any]:
    if _is_struct(array.type):
        inside = _Columns(list(array.type), array.flatten(), len(array), {})
        return [None if null else row for row, null in zip(inside, array.is_null().to_pylist(), strict=True)]
    try:
        values: list[Any] = array.to_pylist()
    except Exception:  # whatever pyarrow and the standard library raise on dates, time zones and bytes
        values = [_value(cell) for cell in array]
    return values


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return BadRow("is not UTF-8 text")
    except Exception as error:  # as above
        return BadRow(f"cannot be converted: {visible(str(error).split(chr(10))[0], 100)}")


def _rows(batches: Iterator[Any], class_names: Mapping[str, Convert]) -> Iterator[ColumnarRow]:
    for batch in batches:
        names = class_names or _saved_class_names(batch.schema)
        yield from _Columns(list(batch.schema), batch.columns, batch.num_rows, names)


def _saved_class_names(schema: Any) -> dict[str, Convert]:
    """The class names that datasets writes into the files that it saves, as functions like those of `_class_names`."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        columns = {name: (feature, feature.get("feature") or {}) for name, feature in features.items()}
        labels = {name: partial(_name, own["names"]) for name, (own, _) in columns.items() if "names" in own}
        lists = {name: partial(_each_name, inner["names"]) for name, (_, inner) in columns.items() if "names" in inner}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {**labels, **lists}


def read_columnar(path: Path, form: str) -> Numbered:
    """Read a Parquet or Arrow file; `form` is `.parquet` or `.arrow`. Raises InputError."""
    import pyarrow
    import pyarrow.parquet

    try:
        source: Any = str(path)
        if path.suffix.lower() in COMPRESSIONS:
            with open_bytes(path) as raw:
                source = pyarrow.BufferReader(raw.read())
        if form == ".parquet":
            batches = pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1000)
        else:
            batches = _arrow_batches(source)
        yield from enumerate(_rows(batches, {}), 1)
    except PermissionError as error:
        raise InputError(f"{printable(path)}: {os.strerror(error.errno or errno.EACCES)}") from None
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
    batches = (batch for part in table.with_format("arrow").iter(1000) for batch in part.to_batches())
    yield from enumerate(_rows(batches, _class_names(table.features)), 1)


def _class_names(features: Any) -> dict[str, Convert]:
    """Column -> function from class numbers to names, for columns of class numbers or of lists of them."""
    named: dict[str, Convert] = {}
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
