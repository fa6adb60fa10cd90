"""Standard output on consoles that cannot say every character, into pipes that close, and onto full disks."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.runtime import streams
from lmtrain.runtime.console import Console, Silent
from lmtrain.runtime.files import write_lines

PROGRAM = [sys.executable, "-m", "lmtrain"]
TEXT = "안녕 ✓ é 😀 … │─┌ \ud800"
"""With half of a surrogate pair, as JSON may hold."""

ENCODINGS = ["utf-8", "cp949", "latin-1", "ascii", "cp1252", "euc-kr", "utf-16"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, env={**os.environ, **environment}, check=False, cwd=Path.cwd()
    )


streams.install()  # registers the error handler; the streams of a test stay


class Console8(io.TextIOWrapper):
    """Standard output in an encoding."""

    def __init__(self, encoding: str):
        super().__init__(io.BytesIO(), encoding, streams.SUBSTITUTE, newline="\n")

    @property
    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding, "surrogatepass")  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_the_same_document_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch):
    out = Console8(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    Console(as_json=True).answer({"input": TEXT, "output": TEXT}, streamed=False)
    Console(as_json=True).result({"name": TEXT}, [], "title")
    line, document = out.written.split("\n", 1)
    assert json.loads(line) == {"input": TEXT, "output": TEXT}
    assert json.loads(document) == {"name": TEXT}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_and_notes_are_said_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch):
    out, err = Console8(encoding), Console8(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    console = Console()
    console.note(TEXT)
    console.result({}, [("name", "안녕 ✓")], title="→ title")
    console.answer({"output": TEXT}, streamed=False)
    assert "name" in out.written and "title" in out.written and err.written.strip()
    if encoding == "ascii":
        assert "\\uc548\\ub155" in out.written and "-> title" in out.written and "..." in err.written
        lines = [line for line in out.written.splitlines() if line.startswith(("+", "|"))]
        assert len(lines) == 3, "the table has lines of ASCII"


def test_the_marks_of_preview_have_a_plain_form():
    assert "«a»␣‹b›·↵⇥".encode("ascii", streams.SUBSTITUTE) == rb"<<a>>~<b>-\n\t"


@pytest.mark.parametrize("encoding", ["cp949", "latin-1", "ascii"])
def test_help_is_shown_in_every_encoding(encoding: str):
    done = run("recipes", "--help", PYTHONIOENCODING=encoding, COLUMNS="80")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert "list" in done.stdout.decode(encoding)


@pytest.mark.parametrize("arguments", [["--version"], ["clm", "--help"], ["recipes"], ["recipes", "list", "--json"]])
def test_a_reader_that_has_left_is_no_error(arguments: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run([*PROGRAM, *arguments], stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_of_messages_that_has_left_ends_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run([*PROGRAM, "run", "nothing-like-it"], stderr=pipe, check=False)
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("arguments", [["recipes", "list", "--json"], ["--version"]])
def test_a_full_disk_is_said_with_its_exit_code(arguments: list[str]):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 7 and b"No space left" in done.stderr and b"Traceback" not in done.stderr


def test_streams_that_were_closed_are_no_error():
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *PROGRAM, "recipes"], check=False)
    assert done.returncode == 0


def test_generation_stops_when_nobody_reads(gpt2: Path):
    Path("prompts.txt").write_text("the dog\n" * 4000)
    arguments = ["generate", "--model", str(gpt2), "--data", "prompts.txt", "--max-new-tokens", "1", "--json"]
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["input"] == "the dog"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0


NOT_UTF8 = [b"\xff.jsonl", "안녕".encode("cp949"), b"caf\xe9"]


@pytest.mark.parametrize("argument", NOT_UTF8)
def test_bytes_that_are_no_text_are_refused_in_a_sentence(argument: bytes):
    done = subprocess.run([*PROGRAM, "clm", "--model", "gpt2", "--data", argument], capture_output=True, check=False)
    message = " ".join(done.stderr.decode().split())
    assert done.returncode == 3 and "an argument that is not UTF-8 text" in message and "rename" in message
    assert len(message) < 200


def test_a_system_without_utf8_is_named():
    surrogates = "안녕".encode().decode("ascii", "surrogateescape")
    with pytest.raises(Exception, match="set PYTHONUTF8=1"):
        streams.check_arguments(["--prompt", surrogates])
    streams.check_arguments(["--prompt", "안녕 é 😀"])


def test_files_hold_names_that_are_no_text():
    write_lines(Path("rows.jsonl"), [{"file": "\udcff.txt", "text": "안녕"}])
    assert json.loads(Path("rows.jsonl").read_text(encoding="utf-8")) == {"file": "\udcff.txt", "text": "안녕"}


def test_silent_is_silent(capsys: pytest.CaptureFixture[str]):
    console = Silent()
    console.note("note")
    console.warn("warning")
    console.answer({"input": "prompt", "output": "answer"}, streamed=False)
    console.result({}, [], title="result")
    assert capsys.readouterr() == ("", "")
