"""The cache of prepared data: keyed by content, complete or absent, made once."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lmtrain, scratch, sentences, trained

from lmtrain.data.cache import PACKAGE, Cache, CacheEntry, code_files
from lmtrain.objectives.seq2seq import Seq2SeqLM
from lmtrain.runtime.console import Console
from lmtrain.training import datasets


def cache(folder: str = "cache") -> Cache:
    return Cache(Path(folder), Console(quiet=True))


def make_entry(calls: list[int]) -> CacheEntry:
    calls.append(1)
    return {"values": np.arange(5), "none": np.empty(0, np.int32)}, {"notes": ["가", 1]}


def test_an_entry_is_made_once_and_loads_unchanged():
    calls: list[int] = []
    for _ in range(2):
        arrays, document = cache().remember("key", lambda: make_entry(calls))
        assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["none"].dtype == np.int32
        assert document["notes"] == ["가", 1]
    assert len(calls) == 1
    cache().remember("another", lambda: make_entry(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["no document", "cut document", "no array", "cut array"])
def test_a_damaged_entry_is_made_again(damage: str):
    calls: list[int] = []
    cache().remember("key", lambda: make_entry(calls))
    file = Path("cache/key", "document.json" if "document" in damage else "values.npy")
    if damage.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:30])
    arrays, _ = cache().remember("key", lambda: make_entry(calls))
    assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2
    cache().remember("key", lambda: make_entry(calls))
    assert len(calls) == 2


def test_an_unwritable_cache_saves_nothing_and_raises_nothing():
    Path("cache").write_text("a file where the folder should be")
    calls: list[int] = []
    for _ in range(2):
        arrays, _ = cache().remember("key", lambda: make_entry(calls))
        assert arrays["values"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2


def test_unused_entries_expire():
    cache().remember("old", lambda: make_entry([]))
    long_ago = time.time() - 40 * 86400
    os.utime("cache/old/document.json", (long_ago, long_ago))
    cache().remember("new", lambda: make_entry([]))
    assert sorted(path.name for path in Path("cache").iterdir() if path.is_dir()) == ["new"]


def _work(folder: str, log: str) -> None:
    def slowly() -> CacheEntry:
        with Path(log).open("a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        return make_entry([])

    arrays, _ = cache(folder).remember("key", slowly)
    with Path(log).open("a") as stream:
        stream.write(f"got {arrays['values'].tolist()}\n")


def test_one_of_several_concurrent_runs_makes_the_entry():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=("cache", "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = Path("log").read_text().splitlines()
    assert lines.count("made") == 1
    assert lines.count("got [0, 1, 2, 3, 4]") == 6


def test_the_key_covers_every_module_of_the_package():
    hashed = {file.relative_to(PACKAGE).as_posix() for file in code_files()}
    assert {"__init__.py", "data/cache.py", "objectives/clm.py", "preprocessing/packing.py"} <= hashed


def write(lines: list[str]) -> None:
    Path("data.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


RUNS = {"clm": scratch("gpt2"), "mlm": scratch("bert"), "seq2seq": scratch("t5")}


@pytest.mark.slow
@pytest.mark.parametrize("objective", RUNS)
def test_a_second_run_reads_and_tokenises_nothing_and_gives_the_same_results(
    objective: str, material: Path, monkeypatch: pytest.MonkeyPatch
):
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    run = [objective, *RUNS[objective], "--data", data, "--max-steps", 2, "--log-every", 1]
    first = trained(*run, "-o", "first", "--cache-dir", "cache")

    def never(*arguments: Any, **options: Any) -> Any:
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


def test_length_tokenizer_seed_and_content_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch):
    write(sentences(40))
    encoded: list[int] = []
    real = datasets._arrays
    monkeypatch.setattr(datasets, "_arrays", lambda *arguments: encoded.append(1) or real(*arguments))
    run = ["clm", *scratch("gpt2"), "--data", "data.jsonl", "--max-steps", 0, "--cache-dir", "cache"]

    def encodings(*flags: Any) -> int:
        encoded.clear()
        trained(*run, *flags, "-o", f"run{len(list(Path().iterdir()))}")
        return len(encoded)

    assert encodings() == 1
    assert encodings() == 0
    assert encodings("--lr", 1e-3, "-b", 2) == 0
    assert encodings("-L", 32) == 1
    assert encodings("--tokenizer", "bpe:280") == 1
    assert encodings("--seed", 2) == 1
    write(sentences(41))
    assert encodings() == 1


def test_a_cached_run_sets_the_languages_of_the_tokenizer(material: Path, monkeypatch: pytest.MonkeyPatch):
    languages: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        Seq2SeqLM, "set_languages", lambda _, tokenizer, data: languages.append((data.source_lang, data.target_lang))
    )
    run = ["seq2seq", *RUNS["seq2seq"], "--data", material / "pairs.jsonl", "--max-steps", 0, "--cache-dir", "cache"]
    for name in ("first", "second"):
        languages.clear()
        trained(*run, "--source-lang", "ko", "--target-lang", "en", "-o", name)
        assert set(languages) == {("ko", "en")}, name
