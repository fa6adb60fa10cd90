"""Every form of --data, format and compression is read into the same rows."""

import bz2
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lmtrain.config.data import ClmData, MlmData, PairData
from lmtrain.data import corpus, reading, rows
from lmtrain.data.cache import Cache
from lmtrain.errors import InputError, UsageError
from lmtrain.runtime.console import Console

LINES = ["The first line.", "두 번째 줄.", "NA", "007", 'with "quotes", and a comma']
ROWS = [{"id": i, "text": line} for i, line in enumerate(LINES)]


def csv_text(separator: str) -> str:
    quote = (lambda cell: '"' + cell.replace('"', '""') + '"') if separator == "," else (lambda cell: cell)
    return "".join(separator.join([str(i), quote(t)]) + "\n" for i, t in [("id", "text"), *enumerate(LINES)])


def arrow(form: str) -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), io.BytesIO()
    if form == "parquet":
        pa.parquet.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


FORMATS = {
    "a.txt": "".join(line + "\n" for line in LINES).encode(),
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "b.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "c.json": "".join(map(json.dumps, ROWS)).encode(),
    "a.csv": csv_text(",").encode(),
    "a.tsv": csv_text("\t").encode(),
    "a.parquet": arrow("parquet"),
    "a.arrow": arrow("stream"),
    "b.arrow": arrow("file"),
}


def zst_file(content: bytes, path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


def load(*specifications: object, data: type = ClmData, **options: object) -> rows.Rows:
    section = data(train=["x"], **options)
    return reading.load([str(s) for s in specifications], section)


@pytest.mark.parametrize("end", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_compression_gives_the_same_texts(name: str, end: str, tmp_path: Path):
    path = tmp_path / (name + end)
    if end == ".zst":
        zst_file(FORMATS[name], path)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[end]
        path.write_bytes(pack(FORMATS[name]))
    assert load(path, packing=False).values == LINES


def test_folders_globs_and_several_arguments_are_read_in_order(tmp_path: Path):
    for name in ("b/2.jsonl", "a/1.jsonl", "a/.hidden.jsonl", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n" if name.endswith("l") else "notes\n")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    assert load(tmp_path).values == ["a/1.jsonl", "b/2.jsonl"]
    assert load(tmp_path / "*" / "*.jsonl").values == ["a/1.jsonl", "b/2.jsonl"]
    assert load(tmp_path / "b", tmp_path / "a").values == ["b/2.jsonl", "a/1.jsonl"]


def test_an_existing_file_name_takes_precedence_over_glob_and_row_count(tmp_path: Path):
    for name in ("x[0-9]*.jsonl", "y#3"):
        (tmp_path / name).write_text('{"text": "here"}\n')
    assert load(tmp_path / "x[0-9]*.jsonl").values == ["here"]
    assert load(tmp_path / "y#3").values == ["here"]


def test_a_row_count_spans_several_files(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}{i}"}}\n' for i in range(3)))
    assert load(f"{tmp_path}/a.jsonl#2").values == ["a0", "a1"]
    assert load(f"{tmp_path}#4").values == ["a0", "a1", "a2", "b0"]


@pytest.mark.parametrize(
    ("content", "kind"), [(b"one\ntwo\n", "text"), (b'{"text": "one"}\n{"text": "two"}\n', "json")]
)
def test_standard_input_is_text_or_json_lines(content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert load("-", packing=False).values == ["one", "two"]


def test_standard_input_cannot_be_both_splits():
    with pytest.raises(UsageError, match="only once"):
        corpus.Corpus(ClmData(train=["-"], eval=["-"]), 1, Cache(None, Console()))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_parallel_files_are_read_line_by_line(end: str, tmp_path: Path):
    for language, lines in (("de", "ja\nnein\n"), ("en", "yes\nno\n")):
        content = lines.encode()
        (tmp_path / f"train.{language}{end}").write_bytes(gzip.compress(content) if end else content)
    rows = load(tmp_path / "train", data=PairData, source_lang="de", target_lang="en")
    assert rows.values == [("ja", "yes"), ("nein", "no")]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a\rx\nb\nc\n", "A\nB\nC\n"),
        ("a\nb\nc\n", "A\nB\rx\nC\n"),
        ("a\r\nb\r\nc\r\n", "A\nB\rx\nC"),
        ("a\u2028x\nb\x0c\nc\n", "A\n\rB\nC\n"),
    ],
)
def test_line_k_belongs_to_line_k_whatever_the_lines_contain(source: str, target: str, tmp_path: Path):
    (tmp_path / "t.de").write_text(source, encoding="utf-8", newline="")
    (tmp_path / "t.en").write_text(target, encoding="utf-8", newline="")
    found = load(tmp_path / "t", data=PairData, source_lang="de", target_lang="en")
    assert [(s.strip()[0], t.strip()[0]) for s, t in found.values] == [("a", "A"), ("b", "B"), ("c", "C")]
    assert not any(text.endswith(("\r", "\n")) for pair in found.values for text in pair)
    said = [note for note in found.notes if "carriage return inside" in note]
    assert len(said) == 1 and said[0].endswith(": 1")


def test_parallel_files_without_line_feeds_are_rejected(tmp_path: Path):
    for language in ("de", "en"):
        (tmp_path / f"t.{language}").write_bytes(b"a\rb\rc\r")
    with pytest.raises(InputError, match=r"t.de: its lines end with carriage returns alone"):
        load(tmp_path / "t", data=PairData, source_lang="de", target_lang="en")


@pytest.mark.parametrize(
    ("endings", "options"),
    [
        (("en", "ko"), {"source_lang": "en_XX", "target_lang": "ko_KR"}),
        (("en", "ko"), {"source_lang": "en", "target_lang": "ko_KR"}),
        (("zh", "en_XX"), {"source_lang": "zh-Hans", "target_lang": "en_XX"}),
        (
            ("en", "ko"),
            {"source_lang": "eng_Latn", "target_lang": "kor_Hang", "source_column": "en", "target_column": "ko"},
        ),
        (("src", "tgt"), {"source_column": "src", "target_column": "tgt"}),
        (("a_b", "c_d"), {"source_column": "a_b", "target_column": "c_d"}),
    ],
)
def test_files_and_columns_may_have_other_names_than_the_languages(
    endings: tuple[str, str], options: dict[str, str], tmp_path: Path
):
    texts = {endings[0]: "one", endings[1]: "하나"}
    for ending, text in texts.items():
        (tmp_path / f"t.{ending}").write_text(text + "\n", encoding="utf-8")
    assert load(tmp_path / "t", data=PairData, **options).values == [("one", "하나")]
    for name, row in (("flat", texts), ("nested", {"translation": texts})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        named = {k: f"translation.{v}" if name == "nested" and k.endswith("column") else v for k, v in options.items()}
        assert load(tmp_path / f"{name}.jsonl", data=PairData, **named).values == [("one", "하나")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source_lang": "eng_Latn", "target_lang": "kor_Hang"},
            r"nor t.eng_Latn and t.kor_Hang, but t.en, t.ko; --source-column en",
        ),
        ({}, r"t: no such file or folder, but t.en, t.ko; --source-column en --target-column ko would name"),
        ({"source_lang": "en", "target_lang": "fr"}, r"t.fr: no such file, but .*t.en exists"),
        (
            {"source_lang": "en_US", "target_lang": "en_GB"},
            r"t.en: fits en_US and en_GB; name what follows .*t. with --source-column",
        ),
    ],
)
def test_parallel_files_that_are_not_found_are_an_error_that_lists_others(
    options: dict[str, str], message: str, tmp_path: Path
):
    for language in ("en", "ko"):
        (tmp_path / f"t.{language}").write_text("x\n")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "t", data=PairData, **options)


def test_languages_that_no_column_has_are_an_error_that_names_the_way_out(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"translation": {"en": "a", "ko": "b"}}\n')
    with pytest.raises(
        InputError, match=r"translations in en, ko, not in eng_Latn and kor_Hang; name the columns, .*--source-column"
    ):
        load(tmp_path / "a.jsonl", data=PairData, source_lang="eng_Latn", target_lang="kor_Hang")


def test_parallel_files_of_different_length_are_rejected(tmp_path: Path):
    (tmp_path / "train.de").write_text("a\nb\nc\n")
    (tmp_path / "train.en").write_text("a\nb\n")
    with pytest.raises(InputError, match="3 vs 2 lines"):
        load(tmp_path / "train", data=PairData, source_lang="de", target_lang="en")


def test_dotted_paths_and_languages_select_nested_columns(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"doc": {"body": "deep"}, "translation": {"de": "ja", "en": "yes"}}\n')
    assert load(path, text_column="doc.body").values == ["deep"]
    assert load(path, data=PairData, source_column="translation.en", target_column="translation.de").values == [
        ("yes", "ja")
    ]
    assert load(path, data=PairData, source_lang="de", target_lang="en").values == [("ja", "yes")]
    with pytest.raises(InputError, match="de, en; give the direction"):
        load(path, data=PairData)


def test_a_split_of_a_local_dataset_is_read(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}-00000-of-00001.parquet").write_bytes(arrow("parquet"))
    assert load(f"{tmp_path}@test").values == LINES
    assert load(f"{tmp_path}@train#2").values == LINES[:2]


def test_an_unavailable_hub_dataset_is_an_input_error():
    with pytest.raises(InputError, match=r"nobody/nothing: no such file, and it cannot be loaded as a Hub dataset"):
        load("nobody/nothing")


# content, part of the message
BROKEN = {
    "a.jsonl": [
        (b'{"text": "ok"}\n{"text": "cut\n', "line 2, column"),
        (b'{"text": "ok"}\n[1]\n', "line 2: a row must be an object"),
        (b'{"text": "ok"}\n{"text": null}\n', "line 2, column 'text': is null"),
        (b'{"text": "ok"}\n{"txt": "x"}\n', "line 2, column 'text': is missing"),
        (b'{"text": "ok"}\n{"text": 7}\n', "line 2, column 'text': is int 7, not text"),
        (b'{"text": "\\ud800"}\n', "line 1, column 'text': contains a lone surrogate"),
        (b'{"body": "x"}\n', "It has body"),
        (b'{"text": " "}\n', "no usable text"),
        (b"", "no usable text"),
    ],
    "a.txt": [
        (b"ok\n\xff\xfa\n", "line 2: not UTF-8 text; name its encoding with --encoding"),
        (b" \n\n", "no usable text"),
    ],
    "a.csv": [
        (b"text,text\na,b\n", "duplicate column 'text'"),
        (b"text,label\na,b\nc\n", "line 3: 1 cells, but the header has 2: text, label"),
        (b"text\n", "no usable text"),
    ],
    "a.jsonl.gz": [
        (gzip.compress(b'{"text": "ok"}\n' * 99, mtime=0)[:40], "damaged"),
        (b'{"text": "ok"}\n', "damaged or not what its name says"),
    ],
    "a.parquet": [(b"PAR1PAR1", "damaged or not parquet"), (arrow("parquet")[:60], "damaged or not parquet")],
}


@pytest.mark.parametrize(("name", "content", "expected"), [(n, c, w) for n, cases in BROKEN.items() for c, w in cases])
def test_bad_input_is_located(name: str, content: bytes, expected: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(tmp_path / name, packing=False)
    assert expected in str(caught.value)
    assert name in str(caught.value)


def test_on_bad_drop_counts_bad_and_empty_rows(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"text": "a"}\n{"text": ""}\n{"text": null}\n{"text": "b"}\n')
    rows = load(path, on_bad="drop")
    assert (rows.values, rows.ledgers[0].rows_bad, rows.ledgers[0].rows_empty) == (["a", "b"], 2, 1)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa\nb\n", "a\nb\n".encode("utf-16"), b"a\r\nb\r\n", b"a\rb"])
def test_byte_order_marks_and_line_ends_are_not_part_of_the_text(content: bytes, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(content)
    assert load(tmp_path / "a.txt", packing=False).values == ["a", "b"]


def test_encoding_selects_other_encodings(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("가나다\n".encode("euc-kr"))
    assert load(tmp_path / "a.txt", encoding="euc-kr", packing=False).values == ["가나다"]
    with pytest.raises(UsageError, match="no such encoding; did you mean 'euc-kr'"):
        load(tmp_path / "a.txt", encoding="euckrr")


def test_unicode_line_separators_do_not_end_a_row(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a\u2028b\x85c\x0bd\x0ce\nf\n", encoding="utf-8")
    assert len(load(tmp_path / "a.txt", packing=False).values) == 2


@pytest.mark.parametrize(
    ("unit", "documents"),
    [("line", [["a"], ["b"], ["c"]]), ("paragraph", [["a\nb"], ["c"]]), ("document", [["a\n", "b\n", "\n", "c\n"]])],
)
def test_a_text_file_is_lines_paragraphs_or_one_document(unit: str, documents: list[list[str]], tmp_path: Path):
    (tmp_path / "a.txt").write_text("a\nb\n\nc\n")
    rows = load(tmp_path / "a.txt", sample_by=unit)
    assert [[rows.values[i] for i in document] for document in rows.documents()] == documents


def test_a_very_long_line_is_one_row_in_several_pieces(tmp_path: Path):
    text = "word " * 20_000
    (tmp_path / "a.txt").write_text(text)
    rows = load(tmp_path / "a.txt")
    assert "".join(rows.values) == text
    assert len(rows) == 1
    assert max(map(len, rows.values)) <= reading.LONGEST_PIECE


@pytest.mark.parametrize("packing", [True, False])
def test_hold_out_is_random_seeded_and_complete(packing: bool, tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(1000)))
    rows = load(tmp_path / "a.txt", packing=packing)
    train, held = corpus.hold_out(rows, 0.05, seed=1)
    assert sorted([*train.values, *held.values]) == sorted(rows.values)
    assert 0.03 <= len(held) / 1000 <= 0.08
    assert held.values == corpus.hold_out(rows, 0.05, seed=1)[1].values
    assert held.values != corpus.hold_out(rows, 0.05, seed=2)[1].values
    assert held.values[0] != "line 950 of the text"


def test_one_row_cannot_be_held_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(InputError, match="--val-split 0"):
        corpus.read(ClmData(train=[str(tmp_path / "a.txt")]), 1)


def test_pipes_broken_links_and_empty_folders_are_rejected(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.jsonl")
    os.symlink(tmp_path / "loop.jsonl", tmp_path / "loop.jsonl")
    (tmp_path / "empty").mkdir()
    for name, expected in (
        ("pipe.jsonl", "not a regular file"),
        ("dangling.jsonl", "No such file"),
        ("loop.jsonl", "symbolic links"),
        ("empty", "no data in this folder"),
    ):
        with pytest.raises(InputError, match=expected):
            load(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        load("/dev/zero.txt" if Path("/dev/zero.txt").exists() else "/dev/null")


def test_masked_data_requires_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(InputError, match="--text-column"):
        load(tmp_path / "a.jsonl", data=MlmData)
    assert load(tmp_path / "a.jsonl", data=ClmData).kind == "prompt"


def test_a_single_chat_is_a_row_and_a_bracket_alone_is_not_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": chat}))
    assert [value.messages for value in load(tmp_path / "a.json").values] == [chat]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[Act 1]\nEnter a king.\n")))
    assert load("-", packing=False).values == ["[Act 1]", "Enter a king."]


def test_a_saved_dataset_is_read_by_split(tmp_path: Path):
    import datasets

    data = datasets.DatasetDict({s: datasets.Dataset.from_list(ROWS[:n]) for s, n in (("train", 4), ("test", 2))})
    data.save_to_disk(str(tmp_path / "saved"))
    assert load(tmp_path / "saved").values == LINES[:4]
    section = ClmData(train=["x"])
    assert reading.load([str(tmp_path / "saved")], section, split="validation").values == LINES[:2]


def test_deep_nesting_is_an_input_error(tmp_path: Path):
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text('{"text": ' + "[" * 100_000)
        with pytest.raises(InputError, match="nested too deeply"):
            load(tmp_path / name)


def test_a_template_joins_several_columns():
    Path("qa.jsonl").write_text(
        '{"question": "Who?", "context": "A dog barks.", "answers": {"text": ["a dog", "dog"]}}\n'
        '{"question": "", "context": " ", "answers": {"text": ["x"]}}\n'
    )
    template = {"source_column": "question: {question} context: {context}", "target_column": "answers.text"}
    rows = load("qa.jsonl", data=PairData, **template)
    assert rows.values == [("question: Who? context: A dog barks.", "a dog", "dog")]
    assert rows.ledgers[0].rows_empty == 1
    with pytest.raises(InputError, match=r"no column 'questoin'.*did you mean 'question'"):
        load("qa.jsonl", data=PairData, source_column="{questoin}", target_column="answers.text")


def test_texts_behave_like_a_list_of_strings():
    strings = ["", "a line", "두 번째 줄", "", "\U0001f600\n", "\ud800 alone", "x" * 1000, ""]
    texts = rows.Texts(strings)
    assert len(texts) == 8 and list(texts) == strings == [texts[i] for i in range(8)]
    assert [texts[-i] for i in range(1, 9)] == strings[::-1]
    for part in (slice(2, 5), slice(None, None, 3), slice(-2, None), slice(5, 2), slice(6, 99)):
        assert texts[part] == strings[part]
    with pytest.raises(IndexError):
        texts[8]
    assert not rows.Texts() and list(rows.Texts()) == []
