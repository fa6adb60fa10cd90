"""Malformed and malicious input is rejected with one message that names its location, or read unchanged."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import Outcome, lmtrain, scratch, trained

from lmtrain.config.data import ClmData, PairData
from lmtrain.data import reading, rows
from lmtrain.data.readers import formats, json_files, text_files
from lmtrain.errors import InputError

GOOD = "".join(f'{{"text": "row {i}"}}\n' for i in range(40))


def load(*specifications: object, data: type = ClmData, **options: object) -> rows.Rows:
    return reading.load([str(s) for s in specifications], data(train=["x"], **options))


def error_message(path: object, data: type = ClmData, **options: object) -> str:
    """The message with which a file is rejected: short and free of control characters."""
    with pytest.raises(InputError) as caught:
        load(path, data=data, packing=False) if data is ClmData else load(path, data=data, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def assert_rejected(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    message = " ".join(outcome.err.split())
    assert all(word in message for word in words), message
    assert not Path("runs").exists()


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fitting"),
    [
        ("Café naïve über ß\n".encode("latin-1"), "latin-1"),
        ("안녕하세요 학교\n".encode("euc-kr"), "euc-kr or latin-1"),
        ("똠방각하 펲시콜라\n".encode("cp949"), "cp949 or latin-1"),
        ("日本語のテキスト\n".encode("shift_jis"), "shift_jis or latin-1"),
    ],
)
def test_fitting_encodings_are_suggested_for_text_that_is_not_utf8(content: bytes, fitting: str, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"first line\n" + content)
    message = error_message(tmp_path / "a.txt")
    assert "a.txt, line 2: not UTF-8 text" in message
    assert message.endswith(f"--encoding, e.g. {fitting}; --on-bad drop leaves such rows out")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", bytes(range(256)) * 20])
def test_no_encoding_is_suggested_for_binary_data(content: bytes, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(content)
    assert error_message(tmp_path / "a.txt").endswith("a.txt: binary data, not text")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_byte_order_mark_needs_the_encoding(encoding: str, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Some text.\nAnd more.\n".encode(encoding))
    assert error_message(tmp_path / "a.txt").endswith(f"--encoding {encoding}")
    assert load(tmp_path / "a.txt", encoding=encoding, packing=False).values == ["Some text.", "And more."]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_select_the_encoding(encoding: str, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("가\nb\n".encode(encoding))
    assert load(tmp_path / "a.txt", packing=False).values == ["가", "b"]


def test_the_line_of_invalid_utf16_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("one\ntwo\nthree".encode("utf-16")[:-1])
    assert "a.txt, line 3: not UTF-16 text" in error_message(tmp_path / "a.txt")


def test_control_characters_inside_a_text_are_preserved(tmp_path: Path):
    lines = ["a\0b and more of it", "👩‍👩‍👧 \u202eabc\u202c ﷽", "각 \u1100\u1161\u11a8", "e\u0301 é", "\x1b[31mred"]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    assert load(tmp_path / "a.txt", packing=False).values == lines


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", GOOD + '{"text": "a", "text": "b"}\n', "a.jsonl, line 41: duplicate key 'text'"),
        ("a.json", '[{"text": "a"},\n {"\\u001b[1m": 1, "\\u001b[1m": 2}]', r"line 1: duplicate key '\x1b[1m'"),
        ("a.jsonl", '{"text": "a", "n": 1' + "0" * 5000 + "}\n", "line 1: Exceeds the limit (4300 digits)"),
        ("a.json", '[{"text": "a"},\n {"text" "b"}]', "a.json, line 2, column 10: not JSON: Expecting ':'"),
        ("a.json", '[{"text": "a"}, 7]', "a.json, row 2: a row must be an object"),
        ("a.json", '"text"', "a.json, row 1: a row must be an object"),
        ("a.jsonl", '{"text": {"\\u202eevil": 1}}\n', r"column 'text': is dict {'\u202eevil': 1}, not text"),
        ("a.jsonl", '{"\\u001b[31mred": 1, "\\u202eb": 2}\n', r"It has \x1b[31mred, \u202eb"),
        ("a.jsonl", '{"text": "ok"}\n{"text": ["\\u001b[2J"]}\n', "a.jsonl, line 2, column 'text': is list"),
    ],
)
def test_invalid_json_is_located(name: str, content: str, expected: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    assert expected in error_message(tmp_path / name)


def test_a_last_line_without_a_newline_is_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(GOOD.rstrip("\n"))
    (tmp_path / "a.csv").write_text('text,label\r\n"two\r\nlines, ""quoted""",1\r\nlast,2')
    assert len(load(tmp_path / "a.jsonl").values) == 40
    assert load(tmp_path / "a.csv").values == ['two\r\nlines, "quoted"', "last"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\n" + "a,1\n" * 99 + "a,b,c,1\n", "a.csv, line 101: 4 cells, but the header has 2"),
        ('text,label\n"never ends,1\n', "a.csv, line 2: a quotation mark is not closed"),
        ("To be or not to be,1\nTo be,2\n", "It has To be or not to be, 1"),
        (" text , label\nabc,1\n", "It has ' text ', ' label'"),
    ],
)
def test_invalid_csv_is_located(content: str, expected: str, tmp_path: Path):
    (tmp_path / "a.csv").write_text(content)
    assert expected in error_message(tmp_path / "a.csv")


# --- parquet, compression --------------------------------------------------------------------------------------------


def parquet(path: Path, *arrays: tuple[str, pa.Array]) -> Path:
    pa.parquet.write_table(pa.Table.from_arrays([array for _, array in arrays], [name for name, _ in arrays]), path)
    return path


def test_invalid_parquet_is_located(tmp_path: Path):
    text = pa.array(["a", "b"])
    path = tmp_path / "a.parquet"
    assert "a.parquet: no usable text" in error_message(parquet(path, ("text", text[:0])))
    assert "row 1, column 'text': is bytes" in error_message(parquet(path, ("text", pa.array([b"a", b"b"]))))
    assert "a.parquet: duplicate column 'text'" in error_message(parquet(path, ("text", text), ("text", text)))
    broken = pa.StringArray.from_buffers(2, *pa.array([b"ok", b"\xff\xfe"]).buffers()[1:])
    assert "a.parquet, row 2, column 'text': is not UTF-8 text" in error_message(parquet(path, ("text", broken)))


@pytest.mark.parametrize("end", [".gz", ".bz2", ".xz", ".zst"])
def test_uncompressed_and_truncated_archives_are_rejected(end: str, tmp_path: Path):
    path = tmp_path / f"a.jsonl{end}"
    path.write_text(GOOD)
    assert "damaged or not what its name says" in error_message(path)
    if end == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(os.urandom(100_000).hex().encode())
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[end]
        path.write_bytes(pack(os.urandom(100_000).hex().encode()))
    path.write_bytes(path.read_bytes()[:50_000])
    assert path.name in error_message(path)


def zstd_frame(content: bytes, window_log: int) -> bytes:
    """A Zstandard frame with one raw block, as RFC 8878 describes it."""
    header = bytes([0, (window_log - 10) << 3])
    return b"\x28\xb5\x2f\xfd" + header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_a_long_window_of_zstandard_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd_frame(GOOD.encode(), 27))
    assert len(load(path).values) == 40
    for window_log in (28, 31):
        path.write_bytes(zstd_frame(GOOD.encode(), window_log))
        message = error_message(path)
        assert "a.jsonl.zst: compressed by zstd with a long window (of more than 128 MiB)" in message


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_compressed_files_are_decompressed_incrementally(end: str, tmp_path: Path):
    path = tmp_path / f"a.txt{end}"
    content = b"the same line again and again and again\n" * 800_000
    if end == ".gz":
        path.write_bytes(gzip.compress(content, 1))
    else:
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)
    tracemalloc.start()
    try:
        lines = text_files.guarded(formats.read_text, path, None)
        assert [next(lines)[0] for _ in range(100)][-1] == 100
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# --- links, names and changing files ----------------------------------------------------------------------------------


def test_links_are_followed_once(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text(GOOD)
    (tmp_path / "d" / "again").symlink_to(".")
    (tmp_path / "link.jsonl").symlink_to("d/a.jsonl")
    assert len(load(tmp_path / "d").values) == len(load(tmp_path / "link.jsonl").values) == 40


def test_folders_and_files_are_told_apart_whatever_their_names(tmp_path: Path):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").write_text(GOOD)
    assert "no data in this folder" in error_message(tmp_path / "a.jsonl")
    assert "no such file or folder" in error_message(tmp_path / "b.jsonl" / "c.jsonl")


@pytest.mark.parametrize(
    "name", ["a b 데이터 📄.jsonl", "a[0-9]*?.jsonl", "a#3.jsonl", "--a.jsonl", "n" * 249 + ".jsonl"]
)
def test_unusual_file_names_are_read(name: str, tmp_path: Path):
    (tmp_path / name).write_text(GOOD)
    assert len(load(tmp_path / name).values) == 40


def test_control_characters_in_file_names_are_escaped(tmp_path: Path):
    path = tmp_path / "a\x1b[31m\nb.jsonl"
    path.write_text("no JSON\n")
    with pytest.raises(InputError, match=re.escape(r"a\x1b[31m\nb.jsonl, line 1, column 1: not JSON")):
        load(path)


def test_lines_appended_while_reading_are_ignored(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 500)
    rows = text_files.guarded(json_files.read_json_lines, path, None)
    next(rows)
    with path.open("a") as stream:
        stream.write('{"text": "half a r')
    assert sum(1 for _ in rows) == 40 * 500 - 1


def test_a_file_truncated_while_reading_is_rejected(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 500)
    rows = text_files.guarded(json_files.read_json_lines, path, None)
    next(rows)
    os.truncate(path, 10)
    with pytest.raises(InputError, match=r"a\.jsonl: was cut off while it was read"):
        list(rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt.gz"])
def test_an_unreadable_file_is_named(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / name).chmod(0)
    assert error_message(tmp_path / name).endswith(f"{name}: Permission denied")


# --- pairs, chats ----------------------------------------------------------------------------------------------------


def test_pairs_without_a_target_count_as_empty(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "c", "target": " "}\n')
    rows = load(tmp_path / "a.jsonl", data=PairData)
    assert (len(rows.values), rows.ledgers[0].rows_empty) == (1, 1)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "wizard", "content": "hi"}], "line 1, column 'messages', message 1: unknown role 'wizard'"),
        ([{"role": "\x1b[31m", "content": "hi"}], r"unknown role '\x1b[31m'"),
        ([{"role": "user", "content": "hi"}], "line 1, column 'messages': no assistant turn"),
        ([{"role": "assistant", "content": None}], "line 1, column 'messages[1].content': is null"),
        ([{"role": "assistant"}], "line 1, column 'messages[1].content': is null"),
        ([{"role": ["user"], "content": "x"}], "line 1, column 'messages', message 1: unknown role"),
        ("hello", "line 1, column 'messages': is not a list"),
    ],
)
def test_invalid_chats_are_located(messages: Any, expected: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    assert expected in error_message(tmp_path / "a.jsonl")


# --- models and recipes ----------------------------------------------------------------------------------------------


class Payload:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(Path("canary").absolute()), "w")


CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 300}
EVIL = "open('canary', 'w').close()\nclass C: pass\n"


@pytest.mark.parametrize("command", ["clm", "eval", "generate"])
def test_no_command_executes_code_from_a_model(command: str, tmp_path: Path):
    Path("data.jsonl").write_text(GOOD)
    for name in ("pickled", "coded"):
        Path(name).mkdir()
    Path("pickled/config.json").write_text(json.dumps(CONFIG))
    Path("pickled/pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    Path("coded/config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoConfig": "evil.C"}}))
    Path("coded/evil.py").write_text(EVIL)
    assert_rejected(lmtrain(command, "--model", "pickled", "--data", "data.jsonl"), 3, "pytorch_model.bin, a pickle")
    assert_rejected(lmtrain(command, "--model", "coded", "--data", "data.jsonl"), 3, "--trust-remote-code")
    assert not Path("canary").exists()


def test_no_command_executes_code_from_a_tokenizer():
    Path("data.jsonl").write_text(GOOD)
    Path("coded").mkdir()
    Path("coded/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["evil.C", None]}})
    )
    Path("coded/evil.py").write_text(EVIL)
    flags = ["clm", "--from-scratch", "--model", "gpt2", "--tokenizer", "coded", "--data", "data.jsonl"]
    assert_rejected(lmtrain(*flags), 3, "coded: the tokenizer cannot be loaded")
    assert not Path("canary").exists()


def test_yaml_tags_execute_nothing():
    Path("r.yaml").write_text('task: clm\nx: !!python/object/apply:os.system ["touch canary"]\n')
    assert_rejected(lmtrain("run", "r.yaml"), 3, "r.yaml, line 2")
    assert not Path("canary").exists()


def test_all_errors_of_a_recipe_are_reported_together():
    Path("r.yaml").write_text("task: clm\nmodel: gpt2\ndata: x\nlr: -1\nbatch_size: 0\nmax_steps: -5\nblock_size: 1\n")
    assert_rejected(lmtrain("run", "r.yaml"), 2, "learning_rate", "batch_size", "max_steps", "max_length")


def test_yaml_values_are_read_literally():
    Path("r.yaml").write_text("task: seq2seq\nmodel: t5\ndata: x\nlr: 1e-4\nsource_prefix: no\nseed: 010\n")
    printed = lmtrain("run", "r.yaml", "--dry-run").out
    assert "learning_rate: 0.0001\n" in printed
    assert "source_prefix: no\n" in printed
    assert "seed: 10\n" in printed


def test_the_value_of_a_secret_key_is_not_printed():
    Path("r.yaml").write_text("task: clm\nhub_api_key: hf_AbCdEfGhIjKl\n")
    outcome = lmtrain("run", "r.yaml")
    assert_rejected(outcome, 2, "hub_api_key: a secret has no place in a recipe")
    assert "hf_AbCd" not in outcome.err


def test_the_output_contains_no_control_characters_from_the_data(tmp_path: Path):
    texts = ["\x1b[2J\x1b[31mRED\x1b]0;title\x07 text", "\u202eabc\u202c and more", "a\0b"]
    Path("a.jsonl").write_text("".join(json.dumps({"text": text * 2}) + "\n" for text in texts * 9))
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", "a.jsonl", "--max-steps", 1, "-o", "run", "--val-split", 0.3)
    assert outcome.code == 0, outcome.err
    assert not [c for c in outcome.out + outcome.err if not c.isprintable() and c not in "\n\t"]


def test_empty_and_bad_rows_are_counted(tmp_path: Path):
    Path("a.jsonl").write_text('{"text": "None is here"}\n{"text": null}\n{"text": ""}\n{"id": 1}\n' * 10)
    results = trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        "a.jsonl",
        "--on-bad",
        "drop",
        "--max-steps",
        1,
        "--val-split",
        0,
        "-o",
        "run",
        "--tokenizer",
        "byte",
    )
    ledger = results["data"]["train"]
    assert (ledger["rows_read"], ledger["rows_used"], ledger["rows_empty"], ledger["rows_bad"]) == (40, 10, 10, 20)
    assert ledger["tokens_read"] == 10 * (len("None is here") + 2)


def test_a_zip_file_named_txt_is_named(tmp_path: Path):
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "한글" * 100)
    (tmp_path / "a.txt").write_bytes(stream.getvalue())
    assert "a.txt: a zip archive; unpack it" in error_message(tmp_path / "a.txt")
