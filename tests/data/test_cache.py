"""Tokenised data are kept for the next run on them: whole, by content, made once."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lmtrain, scratch, sentences, trained

from lmtrain.data.cache import Cache
from lmtrain.runtime.console import Console
from lmtrain.training import datasets


def cache(folder: str = "cache") -> Cache:
    return Cache(Path(folder), Console(quiet=True))


def made(calls: list[int]) -> Any:
    calls.append(1)
    return {"values": np.arange(5), "none": np.empty(0, np.int32)}, {"told": ["가", 1]}


def test_an_entry_is_made_once_and_comes_back_as_it_was():
    calls: list[int] = []
    for _ in range(2):
        arrays, document = cache().remember("key", lambda: made(calls))
        assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["none"].dtype == np.int32
        assert document["told"] == ["가", 1]
    assert len(calls) == 1
    cache().remember("another", lambda: made(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["no document", "cut document", "no array", "cut array"])
def test_a_damaged_entry_is_made_anew(damage: str):
    calls: list[int] = []
    cache().remember("key", lambda: made(calls))
    file = Path("cache/key", "document.json" if "document" in damage else "values.npy")
    if damage.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:30])
    arrays, _ = cache().remember("key", lambda: made(calls))
    assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2
    cache().remember("key", lambda: made(calls))
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_keeps_nothing_and_stops_nobody():
    Path("cache").write_text("a file where the folder should be")
    calls: list[int] = []
    for _ in range(2):
        arrays, _ = cache().remember("key", lambda: made(calls))
        assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2


def test_what_nobody_has_used_for_long_is_removed():
    cache().remember("old", lambda: made([]))
    long_ago = time.time() - 40 * 86400
    os.utime("cache/old/document.json", (long_ago, long_ago))
    cache().remember("new", lambda: made([]))
    assert sorted(path.name for path in Path("cache").iterdir() if path.is_dir()) == ["new"]


def _work(folder: str, log: str) -> None:
    def slowly() -> Any:
        with Path(log).open("a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        return made([])

    arrays, _ = cache(folder).remember("key", slowly)
    with Path(log).open("a") as stream:
        stream.write(f"got {arrays['values'].tolist()}\n")


def test_of_several_runs_at_once_one_makes_it():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=("cache", "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = Path("log").read_text().splitlines()
    assert lines.count("made") == 1
    assert lines.count("got [0, 1, 2, 3, 4]") == 6


def write(lines: list[str]) -> None:
    Path("data.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


RUNS = {"clm": scratch("gpt2"), "mlm": scratch("bert"), "seq2seq": scratch("t5")}


@pytest.mark.parametrize("objective", RUNS)
def test_a_second_start_reads_and_tokenises_nothing_and_ends_alike(
    objective: str, material: Path, monkeypatch: pytest.MonkeyPatch
):
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    run = [objective, *RUNS[objective], "--data", data, "--max-steps", 2, "--log-every", 1]
    first = trained(*run, "-o", "first", "--cache-dir", "cache")

    def never(*arguments: Any) -> Any:
        raise AssertionError("read once more")

    with monkeypatch.context() as patch:
        for name in ("lmtrain.data.corpus.load", "lmtrain.training.datasets.train_tokenizer"):
            patch.setattr(name, never)
        second = trained(*run, "-o", "second", "--cache-dir", "cache")
        with pytest.raises(AssertionError, match="read once more"):
            lmtrain(*run, "-o", "third", "--cache-dir", "cache", "--no-cache")
    for name in ("metrics", "data", "initial_metrics"):
        assert first[name] == second[name]
    assert first["train"]["last_loss"] == second["train"]["last_loss"]


def test_other_options_another_tokenizer_and_other_content_are_other_entries(monkeypatch: pytest.MonkeyPatch):
    write(sentences(40))
    encoded: list[int] = []
    real = datasets._kept
    monkeypatch.setattr("lmtrain.training.datasets._kept", lambda *a: encoded.append(1) or real(*a))
    run = ["clm", *scratch("gpt2"), "--data", "data.jsonl", "--max-steps", 0, "--cache-dir", "cache"]

    def times(*flags: Any) -> int:
        encoded.clear()
        trained(*run, *flags, "-o", f"run{len(list(Path().iterdir()))}")
        return len(encoded)

    assert times() == 1
    assert times() == 0
    assert times("--lr", 1e-3, "-b", 2) == 0
    assert times("-L", 32) == 1
    assert times("--tokenizer", "bpe:280") == 1
    assert times("--seed", 2) == 1
    write(sentences(41))
    assert times() == 1


def test_a_second_start_of_a_translation_aims_at_the_same_language(material: Path, monkeypatch: pytest.MonkeyPatch):
    """What knows the languages is the tokenizer, and it has to be told also where nothing is tokenised any more."""
    told: list[tuple[Any, Any]] = []
    monkeypatch.setattr("lmtrain.training.datasets.set_languages", lambda tokenizer, *pair: told.append(pair))
    run = ["seq2seq", *RUNS["seq2seq"], "--data", material / "pairs.jsonl", "--max-steps", 0, "--cache-dir", "cache",
           "--source-lang", "ko", "--target-lang", "en"]  # fmt: skip
    for name in ("first", "second"):
        trained(*run, "-o", name)
    assert told == [("ko", "en"), ("ko", "en")]
