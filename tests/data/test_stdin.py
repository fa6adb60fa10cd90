"""`--data -`: every command reads standard input, once, like a file of the same content."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, scratch, sentences
from typer.testing import CliRunner

from lmtrain.config.data import ClmData
from lmtrain.data import corpus
from lmtrain.data.cache import Cache
from lmtrain.errors import InputError, UsageError
from lmtrain.runtime.console import Console

LINES = "".join(line + "\n" for line in sentences(60))
ROWS = "".join(json.dumps({"text": line}) + "\n" for line in sentences(40))
PAIRS = "".join(json.dumps({"source": line, "target": line[::-1]}) + "\n" for line in sentences(40))
LABELLED = "".join(json.dumps({"text": line, "label": line[4]}) + "\n" for line in sentences(40))


def piped(content: str | bytes, *arguments: Any) -> Outcome:
    """Run the command line with standard input; it is empty once it has been read, as a pipe is."""
    from lmtrain.cli.app import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=content, prog_name="lmtrain")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("objective", "model", "content"), [("clm", "gpt2", ROWS), ("mlm", "bert", LINES), ("seq2seq", "t5", PAIRS)]
)
@pytest.mark.parametrize("options", [[], ["--no-cache"], ["--val-split", "0.2"]])
def test_preview_reads_standard_input(objective: str, model: str, content: str, options: list[str]):
    outcome = piped(content, "preview", objective, *scratch(model), "--data", "-", *options, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    data = outcome.json["data"]
    assert data["train"]["rows_read"] + data["eval"]["rows_read"] == content.count("\n")


@pytest.mark.parametrize(
    ("objective", "model", "content"), [("clm", "gpt2", LINES), ("mlm", "bert", ROWS), ("seq2seq", "t5", PAIRS)]
)
def test_training_on_standard_input_gives_what_the_same_file_gives(objective: str, model: str, content: str):
    Path("data").write_text(content)
    results = []
    for name in ("-", "data"):
        flags = [*scratch(model), "--data", name, "--max-steps", 2, "--val-split", "0.2", "-o", f"run{name}"]
        outcome = piped(content, objective, *flags, "--json", "--quiet")
        assert outcome.code == 0, outcome.err
        results.append(outcome.json)
    assert results[0]["data"] == results[1]["data"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["train"]["last_loss"] == results[1]["train"]["last_loss"]


def test_the_first_rows_and_evaluation_data_may_come_from_standard_input():
    Path("train.jsonl").write_text(ROWS)
    flags = ["preview", "clm", *scratch("gpt2"), "--json", "--quiet"]
    first = piped(ROWS, *flags, "--data", "-#5", "--val-split", "0")
    assert first.json["data"]["train"]["rows_read"] == 5
    held = piped(LABELLED, *flags, "--data", "train.jsonl", "--eval-data", "-")
    assert held.json["data"]["eval"]["rows_read"] == 40


def test_a_model_is_used_on_standard_input(gpt2: Path, bert: Path):
    found = piped(ROWS, "eval", "--model", gpt2, "--data", "-", "--json", "--quiet")
    assert found.json["data"]["eval"]["rows_read"] == 40
    prompts = piped("the cat\nthe dog\n", "generate", "--model", gpt2, "--data", "-", "--max-new-tokens", 2, "--json")
    assert len(prompts.out.splitlines()) == 2
    probed = piped(LABELLED, "probe", "--model", bert, "--data", "-", "--json", "--quiet")
    assert probed.json["data"]["train"]["rows_read"] + probed.json["data"]["eval"]["rows_read"] == 40
    trained = piped(LINES, "tokenizer", "train", "--data", "-", "--kind", "bpe:300", "-o", "tok")
    assert trained.code == 0, trained.err


def test_bench_reads_standard_input():
    flags = [*scratch("gpt2"), "--data", "-", "-b", 4, "--no-packing", "--epochs", 1000, "--seconds", 1]
    outcome = piped(ROWS, "bench", "clm", *flags, "--json", "--quiet")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("content", "flags", "code", "message"),
    [
        (ROWS, ["--eval-data", "-"], 2, "standard input can be read only once"),
        (ROWS, ["--data", "-#3"], 2, "standard input can be read only once"),
        (ROWS, ["--streaming", "--max-steps", "2"], 2, "--streaming reads the data several times"),
        (ROWS, ["--num-processes", "2"], 2, "standard input cannot be shared by several processes"),
        ("", [], 3, "standard input: no usable text"),
        ("\n \n", [], 3, "standard input: no usable text"),
        (gzip.compress(ROWS.encode()), [], 3, "standard input: compressed with gzip; decompress it"),
        (bz2.compress(ROWS.encode()), [], 3, "standard input: compressed with bzip2; decompress it"),
        (lzma.compress(ROWS.encode()), [], 3, "standard input: compressed with xz; decompress it"),
        (b"PAR1\x15\x04\x15", [], 3, "standard input: a Parquet file"),
        (ROWS + '{"text": "cut', [], 3, "standard input, line 41, column"),
    ],
)
def test_what_cannot_be_read_is_refused(content: str | bytes, flags: list[str], code: int, message: str):
    outcome = piped(content, "clm", *scratch("gpt2"), "--data", "-", *flags, "-o", "run")
    assert outcome.code == code, outcome.err
    assert message in " ".join(outcome.err.split())
    assert not Path("run").exists()


def test_probe_does_not_read_standard_input_twice(bert: Path):
    outcome = piped(LABELLED, "probe", "--model", bert, "--data", "-", "--eval-data", "-")
    assert outcome.code == 2 and "standard input can be read only once" in " ".join(outcome.err.split())


def test_one_of_several_processes_does_not_read_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="cannot be shared by several processes"):
        corpus.Corpus(ClmData(train=["-"]), 1, Cache(None, Console()))


def test_standard_input_that_is_closed_is_an_input_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", None)
    made = corpus.Corpus(ClmData(train=["-"]), 1, Cache(None, Console()))
    with pytest.raises(InputError, match="standard input is closed"):
        made.check()


@pytest.mark.parametrize(("name", "folder"), [("-", None), ("a.jsonl", None), ("-", Path("cache"))])
def test_rows_are_read_once(name: str, folder: Path | None, monkeypatch: pytest.MonkeyPatch):
    Path("a.jsonl").write_text(ROWS)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ROWS.encode())))
    calls = []
    load = corpus.load
    monkeypatch.setattr(corpus, "load", lambda *a, **k: calls.append(a) or load(*a, **k))
    made = corpus.Corpus(ClmData(train=[name]), 1, Cache(folder, Console(quiet=True)))
    made.check()
    assert len(made.splits.train) == 38
    assert made.release_rows()
    assert made.kind == "text"
    assert len(calls) == 1
