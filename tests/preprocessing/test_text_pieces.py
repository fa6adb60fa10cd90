"""A long text is encoded in pieces, with the tokens of the whole text."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import BUILDERS, NEVER_CUT, TEXTS, build

from lmtrain.config.recipe import RECIPES
from lmtrain.data.reading import load
from lmtrain.data.rows import Rows
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import text_pieces
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.text_pieces import Piece, TextCutter
from lmtrain.preprocessing.tokenizing import ids_and_bytes, ids_and_sentences, ids_and_words, ids_of


@cache
def tokenizer_of(kind: str):
    return build(kind, TEXTS.values())


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_pieces, "PIECE", 60)
    monkeypatch.setattr(text_pieces, "CONTEXT", 24)


def whole_ids(tokenizer, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_pieces_have_the_tokens_of_the_whole_text(kind: str, text: str):
    own, content = tokenizer_of(kind), TEXTS[text]
    for parts in ([content], content.splitlines(keepends=True), list(content)):
        pieces = list(TextCutter(own).pieces(parts))
        assert "".join(piece.text[piece.context :] for piece in pieces) == content
        assert [token for ids in ids_of(own, pieces) for token in ids] == whole_ids(own, content)
    if kind in NEVER_CUT or text in ("blank", "one word"):
        assert len(pieces) == 1
    elif text not in ("chinese", "marks"):
        assert len(pieces) > 3


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(BUILDERS)), st.text(alphabet="ab가🙂é\u0301 ,.\n\t1_", min_size=150, max_size=400))
def test_any_text_has_the_same_tokens_in_pieces(kind: str, content: str):
    own = tokenizer_of(kind)
    pieces = TextCutter(own).pieces([content])
    assert [token for ids in ids_of(own, pieces) for token in ids] == whole_ids(own, content)


@pytest.mark.parametrize("text", ["prose", "korean", "code", "chinese"])
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "t5", "bert"])
def test_bytes_words_and_sentences_are_those_of_the_whole_text(kind: str, text: str):
    own, content = tokenizer_of(kind), TEXTS[text]
    pieces = list(TextCutter(own).pieces([content]))
    assert sum(sum(sizes) for _, sizes in ids_and_bytes(own, pieces)) == len(content.encode())
    for encode in (ids_and_sentences, *([ids_and_words] if kind != "llama2" else [])):
        ((ids, starts),) = encode(own, [Piece(content)])
        parts = list(encode(own, pieces))
        assert [token for part, _ in parts for token in part] == ids
        assert [start for _, part in parts for start in part] == starts


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "words together"])
def test_a_text_without_a_place_for_a_cut_is_cut_with_a_warning(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_pieces, "LONGEST", 200)
    own, content = tokenizer_of(kind), TEXTS["one word"]
    cutter = TextCutter(own)
    pieces = list(cutter.pieces([content]))
    assert [len(piece.text) for piece in pieces] == [200] * 4 + [100] and cutter.forced == 4
    assert "".join(piece.text for piece in pieces) == content
    data = RECIPES["clm"].model_fields["data"].annotation(train=["x"])
    examples = OBJECTIVES["clm"].encode(Rows.of("text", [content]), own, data, Limits(None), False)
    assert len(examples.warnings) == 1 and "4 places" in examples.warnings[0]


def test_a_text_of_one_line_is_held_out_in_passages_and_counted_once(tmp_path: Path):
    from lmtrain.data.corpus import read

    (tmp_path / "a.txt").write_text("word " * 40_000)
    data = RECIPES["clm"].model_fields["data"].annotation(train=[str(tmp_path / "a.txt")], val_split=0.3)
    splits = read(data, 1)
    own = tokenizer_of("gpt2")
    examples = [OBJECTIVES["clm"].encode(rows, own, data, Limits(None), False) for rows in splits[:2]]
    assert [each.ledger.rows_used for each in examples] == [1, 1]
    assert all(each.ledger.balances() for each in examples)


OBJECTIVE_KINDS = [("clm", kind) for kind in BUILDERS if kind != "bert"] + [("mlm", "bert")]


@pytest.mark.parametrize("text", ["prose", "korean", "code", "markdown", "windows"])
@pytest.mark.parametrize(("objective", "kind"), OBJECTIVE_KINDS)
def test_a_text_file_has_the_tokens_of_its_text_as_one_json_row(objective: str, kind: str, text: str, tmp_path: Path):
    """Line ends of a text file are read as Python's `open` reads them."""
    own, content = tokenizer_of(kind), TEXTS[text]
    (tmp_path / "a.txt").write_bytes(content.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": (tmp_path / "a.txt").read_text(encoding="utf-8")}))
    found = []
    for name in ("a.txt", "a.jsonl"):
        data = RECIPES[objective].model_fields["data"].annotation(train=[str(tmp_path / name)], val_split=0)
        rows = load(data.train, data)
        examples = OBJECTIVES[objective].encode(rows, own, data, Limits(None), True)
        found.append([token for row in examples.columns["input_ids"] for token in row.tolist()])
    special = {*own.all_special_ids, *own("")["input_ids"]}  # what frames a document
    assert found[0] == found[1]
    read = whole_ids(own, content.replace("\r\n", "\n"))
    assert [token for token in found[0] if token not in special] == [token for token in read if token not in special]


@pytest.mark.parametrize("chunk", [1, 3, 50])
@pytest.mark.parametrize("text", ["prose", "markdown", "korean", "chinese"])
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "t5", "qwen", "words together"])
def test_a_stream_of_a_text_file_has_the_tokens_of_its_text(kind: str, text: str, chunk: int, tmp_path: Path):
    from lmtrain.data.reading import RowReader
    from lmtrain.data.sources import open_tables
    from lmtrain.preprocessing.stream import Stream, StreamState

    own, content = tokenizer_of(kind), TEXTS[text]
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    objective = OBJECTIVES["clm"]
    data = (
        RECIPES["clm"]
        .model_fields["data"]
        .annotation(train=[str(tmp_path / "a.txt")], streaming=True, max_length=16, packing_strategy="blocks")
    )
    reader = RowReader(open_tables(data.train, data), data)
    encode = lambda rows: objective.encode(rows, own, data, Limits(None), False)  # noqa: E731
    stream = Stream(reader, encode, objective.collator(own, data, 1), 1, 1, chunk)
    taken: list[int] = []
    state = stream.state
    for content_of_row, after in stream._rows():
        if after.epoch:
            break
        taken += content_of_row["input_ids"].tolist()
        state = StreamState.from_json(after.to_json())
        assert state == after
    special = {own.eos_token_id}
    assert Counter(token for token in taken if token not in special) == Counter(whole_ids(own, content))
