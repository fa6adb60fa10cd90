"""The splits: held-out rows, leaks, cache keys and source weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch, sentences, trained

from lmtrain.config.data import ClmData, PairData
from lmtrain.data.cache import Cache
from lmtrain.data.corpus import Corpus, read
from lmtrain.errors import InputError
from lmtrain.runtime.console import Console


def write(name: str, texts: list[str]) -> str:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return name


def corpus(section: type = ClmData, seed: int = 1, **data: Any) -> Corpus:
    return Corpus(section(**data), seed, Cache(Path("cache"), Console(quiet=True)))


def test_shared_and_duplicate_rows_are_counted():
    train, held = write("t.jsonl", ["a", "b", "b", "c", "가"]), write("e.jsonl", ["b", "x", "가"])
    splits = corpus(train=[train], eval=[held]).splits
    assert (splits.shared_rows, splits.duplicate_rows) == (2, 1)
    assert "2 evaluation rows also occur in the training data" in splits.warnings("warn")[0]
    assert corpus(train=[train], eval=[write("o.jsonl", ["x"])]).splits.warnings("warn") == []


def test_on_leak_drop_removes_leaked_rows_from_training():
    train, held = write("t.jsonl", ["a", "b", "b", "c"]), write("e.jsonl", ["b", "x"])
    splits = corpus(train=[train], eval=[held], on_leak="drop").splits
    assert splits.train.values == ["a", "c"]
    assert splits.train.ledgers[0].rows_dropped == 2
    assert splits.held_out.values == ["b", "x"]


def test_on_leak_error_names_the_row():
    train, held = write("t.jsonl", ["a", "b", "c"]), write("e.jsonl", ["x", "b", "c"])
    with pytest.raises(InputError, match=r"e.jsonl, line 2: also occurs in the training data \(and 1 more\)"):
        assert corpus(train=[train], eval=[held], on_leak="error").splits


def test_a_pair_leaks_only_if_source_and_target_match():
    for name, target in (("t.jsonl", "b"), ("e.jsonl", "c")):
        Path(name).write_text(json.dumps({"source": "a", "target": target}) + "\n")
    assert corpus(PairData, train=["t.jsonl"], eval=["e.jsonl"]).splits.shared_rows == 0
    assert corpus(PairData, train=["t.jsonl"], eval=["t.jsonl"]).splits.shared_rows == 1


@pytest.mark.parametrize("changed", ["content", "order", "seed", "option", "limit", "name"])
def test_the_key_depends_on_content_and_options_but_not_on_file_names(changed: str):
    before = corpus(train=[write("a.jsonl", ["a", "b"]), write("b.jsonl", ["c"])]).key
    files, seed, options = ["a.jsonl", "b.jsonl"], 1, {}
    if changed == "content":
        write("a.jsonl", ["a", "x"])
    elif changed == "order":
        files.reverse()
    elif changed == "seed":
        seed = 2
    elif changed == "option":
        options = {"on_bad": "drop"}
    elif changed == "limit":
        files[0] += "#1"
    else:
        Path("a.jsonl").rename("other.jsonl")
        files[0] = "other.jsonl"
    assert (corpus(train=files, seed=seed, **options).key == before) == (changed == "name")


def test_a_file_that_changes_while_it_is_read_is_not_cached(monkeypatch: pytest.MonkeyPatch):
    name = write("a.jsonl", ["a", "b", "c"])

    def appended(*arguments: Any) -> Any:
        rows = read(*arguments)
        with Path(name).open("a") as stream:
            stream.write('{"text": "d"}\n')
        return rows

    with monkeypatch.context() as patch:
        patch.setattr("lmtrain.data.corpus.read", appended)
        first = corpus(train=[name], val_split=0)
        assert first.kind == "text"
    assert first.splits.train.values == ["a", "b", "c"]
    assert not [path for path in Path("cache").iterdir() if path.is_dir()]
    second = corpus(train=[name], val_split=0)
    assert second.kind == "text"
    assert second.splits.train.values == ["a", "b", "c", "d"]
    assert len([path for path in Path("cache").iterdir() if path.is_dir()]) == 1


def test_each_source_has_a_ledger_and_the_share_of_its_weight():
    write("big.jsonl", sentences(60))
    write("small.jsonl", [f"a {n} b" for n in range(10)] + [""])
    results = trained(
        "clm",
        *scratch("gpt2"),
        "-d",
        "big.jsonl",
        "-d",
        "small.jsonl",
        "--data-weights",
        "1,1",
        "--no-packing",
        "--val-split",
        0,
        "--max-steps",
        2,
        "-o",
        "run",
    )
    big, small = results["data"]["train_sources"]
    assert (big["source"], big["rows_read"], big["rows_used"], big["share"]) == ("big.jsonl", 60, 60, 0.5)
    assert (small["source"], small["rows_read"], small["rows_used"], small["rows_empty"]) == ("small.jsonl", 11, 10, 1)
    whole = results["data"]["train"]
    for name in ("rows_read", "rows_used", "rows_empty", "tokens_read", "tokens_used", "tokens_trained"):
        assert whole[name] == big[name] + small[name], name


@pytest.mark.parametrize("strategy", ["best-fit", "blocks"])
def test_a_packed_row_contains_one_source(strategy: str):
    write("a.jsonl", ["a" * n for n in range(1, 20)])
    write("b.jsonl", ["b" * n for n in range(1, 20)])
    results = trained(
        "clm",
        *scratch("gpt2")[:-1],
        "byte",
        "-d",
        "a.jsonl",
        "-d",
        "b.jsonl",
        "--data-weights",
        "3,1",
        "--packing-strategy",
        strategy,
        "--val-split",
        0,
        "--max-steps",
        3,
        "-L",
        32,
        "-o",
        "run",
    )
    shares = [source["share"] for source in results["data"]["train_sources"]]
    assert shares[0] == pytest.approx(0.75, abs=0.04)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "message"), [("1", "1 numbers for 2 --data"), ("1,0", "must be above 0"), ("1,x", "write it as 3,1")]
)
def test_invalid_weights_are_rejected(weights: str, message: str):
    outcome = lmtrain("clm", *scratch("gpt2"), "-d", "a.txt", "-d", "b.txt", "--data-weights", weights)
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")


@pytest.mark.parametrize("name", ["long.jsonl", "long.txt"])
def test_the_pieces_of_a_long_row_stay_in_one_split(name: str):
    text = " ".join(f"word{n}" for n in range(150_000))
    if name.endswith("txt"):
        Path(name).write_text(text)
    else:
        write(name, [text, "another", "third"])
    splits = corpus(train=[name], val_split=0.3).splits
    for rows in (splits.train, splits.held_out):
        for document in rows.documents():
            assert "".join(rows.values[index] for index in document) in (text, "another", "third") or (
                name.endswith("txt") and "".join(rows.values[index] for index in document) in text
            )
    if name.endswith("txt"):
        ends = [rows.ends(document[-1]) for rows in (splits.train, splits.held_out) for document in rows.documents()]
        assert ends.count(True) == 1, "the text ends once"


def test_a_chat_that_is_not_valid_unicode_is_a_bad_row():
    Path("chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "\\ud800"}]}\n'
    )
    with pytest.raises(InputError, match="line 1, column 'messages', message 2"):
        assert corpus(train=["chat.jsonl"], val_split=0).splits
