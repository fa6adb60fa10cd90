"""Folders and patterns: which files are data, which split is read, and what is said about the rest."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lmtrain.config.data import ClmData
from lmtrain.data import reading, rows
from lmtrain.errors import InputError


def load(*specifications: str, split: str = "train", **options: object) -> rows.Rows:
    return reading.load(list(specifications), ClmData(train=["x"], **{"packing": False, **options}), split)


def write(name: str, content: str | bytes = "") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_rows(name: str, texts: list[str]) -> None:
    """A file of rows in the format of its name."""
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pa.parquet.write_table(pa.table({"text": texts}), sink)
        write(name, sink.getvalue())
    elif name.endswith(".jsonl"):
        write(name, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif name.endswith(".csv"):
        write(name, "\n".join(["text", *texts]) + "\n")
    else:
        write(name, "\n".join(texts) + "\n")


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "evaluation", "others"),
    [
        (
            "data/train-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
            ["data/test-00000-of-00001.parquet"],
        ),
        ("train.jsonl", "test.jsonl", []),
        ("train.csv", "dev.csv", ["test.csv"]),
        ("Train.jsonl", "Val.jsonl", []),
        ("train/a.txt", "valid/a.txt", ["test/a.txt"]),
        ("ratings_train.txt", "ratings_test.txt", ["README.md"]),
        ("park.train.ko", "park.dev.ko", ["park.test.ko"]),
        ("train_sft-00000-of-00002-0a.parquet", "test_sft-00000-of-00001.parquet", []),
        ("c4-train.00000-of-01024.jsonl", "c4-validation.00000-of-00008.jsonl", []),
        ("training/x/part1.jsonl", "evaluation/part1.jsonl", []),
    ],
)
def test_training_reads_the_split_train_and_evaluation_another(train: str, evaluation: str, others: list[str]):
    write_rows(f"d/{train}", ["to train"])
    for name in (evaluation, *others):
        write_rows(f"d/{name}", [f"of {name}"])
    found = load("d")
    assert found.values == ["to train"]
    assert any("split" in note for note in found.notes), found.notes
    held = load("d", split="validation")
    assert held.values == [f"of {evaluation}"]
    assert any("split" in note and "train" in note for note in held.notes)


def test_files_of_no_split_are_trained_where_there_is_no_split_train():
    write_rows("d/a.jsonl", ["a"])
    write_rows("d/test.jsonl", ["t"])
    found = load("d")
    assert found.values == ["a"]
    assert found.notes[0] == "d: files of no split are read, not test (d@test names it)"


def test_a_folder_with_test_data_alone_is_not_trained():
    write_rows("d/test.jsonl", ["t"])
    with pytest.raises(InputError, match=r"d: has no split 'train'; it has test: name one, e.g. d@test"):
        load("d")
    assert load("d", split="validation").values == load("d@test").values == ["t"]


def test_one_of_several_splits_must_be_named():
    for name in ("train_sft", "train_gen", "test_sft"):
        write_rows(f"d/data/{name}-00000-of-00001.parquet", [name])
    with pytest.raises(InputError, match="has several splits for 'train'; it has test_sft, train_gen, train_sft"):
        load("d")
    assert load("d@train_gen").values == ["train_gen"]
    assert load("d@train_sft#1").values == ["train_sft"]


@pytest.mark.parametrize("typed", ["dev", "validation", "val"])
def test_a_split_is_found_by_any_of_its_names(typed: str):
    for name in ("train", "dev"):
        write_rows(f"d/{name}.jsonl", [name])
    assert load(f"d@{typed}").values == ["dev"]
    with pytest.raises(InputError, match="has no split 'test'; it has dev, train"):
        load("d@test")


def test_files_without_a_split_beside_a_split_are_listed():
    write_rows("d/train.jsonl", ["a"])
    write_rows("d/more.jsonl", ["b"])
    found = load("d")
    assert found.values == ["a"]
    assert "d: 1 left out: more.jsonl (in no split); name a file to read it" in found.notes


def test_a_pattern_reads_all_splits_and_says_so():
    for name in ("train", "test"):
        write_rows(f"d/{name}.jsonl", [name])
    found = load("d/*.jsonl")
    assert found.values == ["test", "train"]
    assert "d/*.jsonl: matches files of the splits test, train, and all are read" in found.notes


# --- saved datasets --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved() -> str:
    import datasets

    datasets.disable_progress_bars()
    splits = {"train": [f"train {i}" for i in range(6)], "test": ["test 0", "test 1"]}
    made = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    datasets.DatasetDict(made).save_to_disk("dd")
    return "dd"


def test_the_splits_of_a_saved_dataset_have_names(saved: str):
    assert len(load(saved).values) == 6
    assert load(f"{saved}#5").values == [f"train {i}" for i in range(5)]
    assert load(f"{saved}@test").values == load(f"{saved}/test").values == ["test 0", "test 1"]
    assert load(f"{saved}@test#1").values == ["test 0"]
    with pytest.raises(InputError, match=r"dd: has no split 'dev'; it has test, train: name one, e.g. dd@test"):
        load(f"{saved}@dev")
    held = load(saved, split="validation")
    assert held.values == ["test 0", "test 1"]
    assert held.notes[0] == "dd: the split test is read for validation, not train (dd@train names it)"


@pytest.mark.parametrize("how", ["dd", "dd/train", "dd/train/*.arrow"])
def test_caches_beside_a_saved_dataset_are_no_data(saved: str, how: str):
    data = Path("dd/train/data-00000-of-00001.arrow")
    for name in ("cache-0123456789abcdef.arrow", "tmpabc.arrow"):
        Path("dd/train", name).write_bytes(data.read_bytes())
    found = load(how)
    assert len(found.values) == 6
    assert any("cache-0123456789abcdef.arrow" in note and "(a cache of datasets)" in note for note in found.notes)


def test_the_state_of_a_saved_dataset_names_its_data(saved: str):
    folder = Path("dd/train")
    (folder / "data-00000-of-00001.arrow").rename(folder / "other.arrow")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "other.arrow"}]}))
    (folder / "data-00000-of-00001.arrow").write_bytes(b"old")
    assert len(load("dd").values) == 6


# --- which files -----------------------------------------------------------------------------------------------------


def test_a_folder_and_a_pattern_read_what_a_name_reads():
    texts = {
        "d/AA/wiki_00": "one",
        "d/AB/wiki_00": "two",
        "d/b.md": "three",
        "d/c.text": "four",
        "d/e.py": "five",
        "d/f.txt": "six",
    }
    for name, text in texts.items():
        write(name, text + "\n")
    assert sorted(load("d").values) == sorted(load("d/**").values) == sorted(texts.values())
    assert load("d/*/wiki_*").values == ["one", "two"]
    assert load(*texts).values == list(texts.values())


def test_what_is_left_out_of_a_folder_is_listed():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    contents = {
        "a.txt": b"text\n",
        ".hidden.txt": b"hidden\n",
        ".git/config": b"hidden\n",
        "b.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "c.tar": archive.getvalue(),
        "d": archive.getvalue(),
        "e.br": b"\x0b\x02\x80text\x03",
        "LICENSE": b"You may.\n",
        "empty": b"",
        "_SUCCESS": b"",
    }
    for name, content in contents.items():
        write(f"f/{name}", content)
    found = load("f")
    assert found.values == ["text"]
    (note,) = (note for note in found.notes if "left out" in note)
    assert note.startswith("f: 9 left out: ")
    assert all(name in note for name in list(contents)[2:] if name != ".git/config"), note
    for reason in (
        "hidden",
        "binary",
        "a tar archive",
        "compressed with Brotli",
        "about the data",
        "empty",
        "metadata",
    ):
        assert f"({reason}" in note, note


def test_text_beside_rows_is_left_out_and_rows_in_any_file_are_read():
    write_rows("d/a.jsonl", ["a"])
    write("d/notes.md", "notes\n")
    write("d/wiki_00", '{"text": "w"}\n')
    found = load("d")
    assert found.values == ["a", "w"]
    assert "d: 1 left out: notes.md (text beside rows); name a file to read it" in found.notes


@pytest.mark.parametrize(
    ("name", "content", "how", "message"),
    [
        ("d/a.zip", b"PK\x05\x06" + bytes(18), "d", "no data in this folder; left out are a.zip"),
        ("d/a.png", b"\x89PNG\0\0", "d/*", r"no file matches this pattern; left out are d/a.png \(binary\)"),
        ("d/e/a.txt", b"text", "d/*", r"no file matches this pattern; left out are d/e \(a folder\)"),
        ("d/.a.txt", b"text", "d", r"no data in this folder; left out are .a.txt \(hidden\)"),
    ],
)
def test_nothing_to_read_is_an_error_that_lists_what_was_found(name: str, content: bytes, how: str, message: str):
    write(name, content)
    with pytest.raises(InputError, match=message):
        load(how)


# --- archives and other formats --------------------------------------------------------------------------------------


def archive(kind: str) -> bytes:
    made = io.BytesIO()
    if kind.startswith("tar"):
        with tarfile.open(fileobj=made, mode=f"w:{kind.partition('.')[2]}") as tar:
            member = tarfile.TarInfo("a.txt")
            member.size = 600
            tar.addfile(member, io.BytesIO(b"some text\n" * 60))
    elif kind == "7z":
        made.write(b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(24))
    elif kind == "rar":
        made.write(b"Rar!\x1a\x07\x01\0" + bytes(24))
    elif kind == "ole":
        made.write(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504))
    else:
        with zipfile.ZipFile(made, "w") as opened:
            members = {
                "zip": ["data.csv"],
                "xlsx": ["[Content_Types].xml", "xl/workbook.xml"],
                "docx": ["word/document.xml"],
            }
            for member in members[kind]:
                opened.writestr(member, "text\nhello\n" * 20)
    return made.getvalue()


@pytest.mark.parametrize(
    ("kind", "names", "what"),
    [
        ("tar", ["c.tar", "c", "c.txt", "c.jsonl"], "a tar archive; unpack it"),
        ("tar.gz", ["c.tar.gz", "c.tgz", "c.txt.gz", "c"], "a tar archive; unpack it"),
        ("tar.bz2", ["c.tar.bz2", "c.tbz2"], "a tar archive; unpack it"),
        ("tar.xz", ["c.tar.xz", "c.txz", "c.csv.xz"], "a tar archive; unpack it"),
        ("zip", ["c.zip", "c.csv.zip", "c", "c.csv"], "a zip archive; unpack it"),
        ("7z", ["c.7z", "c"], "a 7-Zip archive; unpack it"),
        ("rar", ["c.rar", "c.txt"], "a RAR archive; unpack it"),
        ("xlsx", ["c.xlsx", "c.csv", "c"], "an Excel workbook; save its sheet as CSV"),
        ("docx", ["c.docx"], "a Word document; save it as plain text"),
        ("ole", ["c.xls", "c.hwp"], "an old Excel, Word or HWP document; save it"),
    ],
)
def test_an_archive_is_named_and_never_read_as_text(kind: str, names: list[str], what: str):
    for name in names:
        write(name, archive(kind))
        with pytest.raises(InputError, match=f"^{name}: {what}"):
            load(name)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl.br", b"\x0b\x02\x80", "compressed with Brotli; decompress it, or compress it anew as .gz"),
        ("a.txt.lz4", b"\x04\x22\x4d\x18", "compressed with LZ4"),
        ("a", b"\x04\x22\x4d\x18", "compressed with LZ4"),
        ("a.txt.Z", b"\x1f\x9d\x90", "compressed with compress"),
        (
            "a.txt",
            b"\x1f\x8b\x08\0\0\0\0\0",
            "compressed with gzip; decompress it, or give a file whose name ends in .gz",
        ),
        ("a", b"\x28\xb5\x2f\xfd\0", "compressed with zstd; decompress it, or give a file whose name ends in .zst"),
        ("a.txt", b"PAR1\x15\x04", "a Parquet file; let its name end in .parquet"),
        ("a.txt", b"%PDF-1.7\n", "a PDF document; extract its text"),
        ("a.txt", b"text\0\0\0\0\0\0\0\0more", "binary data, not text"),
    ],
)
def test_compressed_and_binary_files_are_named(name: str, content: bytes, what: str):
    write(name, content)
    with pytest.raises(InputError, match=f"^{name}: {what}"):
        load(name)
