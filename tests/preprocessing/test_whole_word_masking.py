"""Whole words and spans: the share to the tenth of a per cent, no word cut through, the law of lengths, the same masks
in every layout."""

import itertools
import json
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lmtrain, outcome_of, scratch, sentences, trained

from lmtrain.config.recipe import RECIPES
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import tokenizing, train_tokenizer, whole_word_masking
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.hashed_random import uniform
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.text_pieces import Piece

KINDS = ("wordpiece:120", "bpe:320", "unigram:120", "byte")
SYLLABLES = ("ka", "lo", "mi", "tre", "ung", "sa", "vel", "ost", "in", "한", "국", "말은", "é")


def prose(words: int) -> list[str]:
    """Lines of made-up words, the first ones much more frequent than the last, with commas and full stops."""
    chance = random.Random(0)
    known = ["".join(chance.choices(SYLLABLES, k=chance.choice((1, 1, 2, 2, 3, 4)))) for _ in range(800)]
    drawn = chance.choices(known, [1 / (rank + 3) for rank in range(800)], k=words)
    marked = [word + chance.choice(("", "", "", "", "", ",", ".")) for word in drawn]
    return [" ".join(marked[start : start + 12]) for start in range(0, words, 12)]


@cache
def encoded(kind: str, what: str) -> tuple[Any, Any, Examples]:
    lines = prose(30_000)
    own = train_tokenizer.train_tokenizer(kind, lines, OBJECTIVES["mlm"].special_tokens)
    data = RECIPES["mlm"].model_fields["data"].annotation(train=["x"], masking=what, max_length=512)
    rows = Rows.of("text", [line + "\n" for line in lines], running=True)
    return own, data, OBJECTIVES["mlm"].encode(rows, own, data, Limits(512, {}), False)


def row_of(examples: Examples, epoch: int | None) -> dict[str, Any]:
    """All texts at once."""
    ids = examples.columns["input_ids"]
    content = {name: column.values for name, column in examples.columns.items()}
    return {"epoch": epoch, "progress": 0.0, "numbers": np.arange(len(ids)), "lengths": ids.lengths, **content}


def word_of_tokens(examples: Examples, own: Any) -> np.ndarray:
    """The number of the word that each token is of, by the tokenizer's own account of the whole text."""
    text = "".join(line + "\n" for line in prose(30_000))
    words = own.backend_tokenizer.encode(text, add_special_tokens=False).word_ids
    found = np.full(len(examples.columns["input_ids"].values), -1)
    inside = ~np.isin(examples.columns["input_ids"].values, [own.cls_token_id, own.sep_token_id])
    found[inside] = words
    return found


@pytest.mark.parametrize("what", ["word", "span"])
@pytest.mark.parametrize("kind", KINDS)
def test_over_a_million_tokens_the_shares_are_right_and_no_word_is_cut_through(kind: str, what: str):
    own, data, examples = encoded(kind, what)
    collate, ids = OBJECTIVES["mlm"].collator(own, data, 4), examples.columns["input_ids"]
    word, text = word_of_tokens(examples, own), np.repeat(np.arange(len(ids)), ids.lengths)
    together = (word[1:] == word[:-1]) & (text[1:] == text[:-1]) & (word[1:] >= 0)
    free = ~np.isin(ids.values, own.all_special_ids)
    assert together.sum() > 0.2 * free.sum()
    counts = np.zeros(4)
    epoch = 0
    while counts[0] < 1_000_000:
        shown, labels = collate.scored(row_of(examples, epoch))
        asked = labels != IGNORED
        assert not (asked & ~free).any()
        both_free = free[1:] & free[:-1]
        assert not ((asked[1:] != asked[:-1]) & together & both_free).any()
        hidden = asked & (shown == own.mask_token_id)
        assert not (shown != ids.values)[~asked].any()
        counts += free.sum(), asked.sum(), hidden.sum(), (asked & ~hidden & (shown != labels)).sum()
        epoch += 1
    total, predicted, hidden, replaced = counts
    assert predicted / total == pytest.approx(0.15, abs=0.001)
    assert hidden / predicted == pytest.approx(0.8, abs=0.005)
    assert replaced / predicted == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("probability", [0.15, 0.4, 0.7])
@pytest.mark.parametrize("spans", [False, True])
def test_every_word_has_the_same_chance_whatever_its_length_also_in_short_texts(probability: float, spans: bool):
    lengths, times = np.array([1, 2, 9, 23]), 4000
    starts = np.array(
        [True]
        + [True, False]
        + [True, False, False, True, True, False, True, True, True]
        + [True, False, False, False] * 5
        + [True] * 3
    )
    free = np.ones(len(starts), bool)
    counts = np.zeros(len(starts))
    for seed in range(times):
        counts += whole_word_masking.choose(starts, free, lengths, np.arange(4), probability, (seed, 1), spans)[0]
    text = np.repeat(np.arange(4), lengths)
    assert np.bincount(text, counts / times) / lengths == pytest.approx(np.full(4, probability), abs=0.025)
    if not spans:
        assert counts / times == pytest.approx(np.full(len(starts), probability), abs=0.03)


def test_lengths_of_spans_follow_the_clipped_geometric_law():
    own, data, examples = encoded("wordpiece:400", "span")
    ids, word = examples.columns["input_ids"], word_of_tokens(examples, own)
    text = np.repeat(np.arange(len(ids)), ids.lengths)
    ends = ids.offsets[1:] - 2  # the last token before [SEP]
    collate, seen = OBJECTIVES["mlm"].collator(own, data, 7), np.zeros(40)
    for epoch in range(20):
        asked = collate.scored(row_of(examples, epoch))[1] != IGNORED
        first = np.flatnonzero(asked & ~np.append(False, asked[:-1]))
        last = np.flatnonzero(asked & ~np.append(asked[1:], False))
        assert (text[first] == text[last]).all()
        # A token is counted where a word begins; a span that the end of its text may have cut short is left out.
        begins = np.append(True, (word[1:] != word[:-1]) | (text[1:] != text[:-1]))
        words = np.cumsum(begins)[last] - np.cumsum(begins)[first] + 1
        seen += np.bincount(words[~np.isin(last, ends)], minlength=40)[:40]
    assert seen[[0]] == 0 and seen[11:].sum() == 0
    law = np.array([0.2 * 0.8**k for k in range(10)]) / (1 - 0.8**10)
    expected = seen.sum() * law
    assert seen.sum() > 10_000
    assert ((seen[1:11] - expected) ** 2 / expected).sum() < 27.9, "chi square, 9 degrees of freedom, p = 0.001"
    assert (seen[1:11] * np.arange(1, 11)).sum() / seen.sum() == pytest.approx(3.8, abs=0.05)


def test_single_tokens_are_masked_as_they_always_were():
    own, data, examples = encoded("wordpiece:400", "token")
    assert set(examples.columns) == {"input_ids"}
    ids = examples.columns["input_ids"]
    collate = OBJECTIVES["mlm"].collator(own, data, 42)
    shown, labels = collate.scored(row_of(examples, 2))
    numbers = np.repeat(np.arange(len(ids)), ids.lengths)
    positions = np.arange(len(numbers)) - np.repeat(ids.offsets[:-1], ids.lengths)
    chance, fate, other = (uniform((42, 3, draw), numbers, positions) for draw in range(3))
    special = np.isin(ids.values, own.all_special_ids)
    asked = (chance < 0.15) & ~special
    ordinary = np.setdiff1d(np.arange(len(own)), own.all_special_ids)
    stand_in = ordinary[(other * len(ordinary)).astype(int)]
    assert (asked == (labels != IGNORED)).all()
    assert (
        shown
        == np.where(asked & (fate < 0.8), own.mask_token_id, np.where(asked & (fate < 0.9), stand_in, ids.values))
    ).all()


@pytest.mark.parametrize("what", ["word", "span"])
def test_masks_of_a_text_do_not_depend_on_what_shares_its_row_or_batch(what: str):
    own, data, _examples = encoded("bpe:400", what)
    collate = OBJECTIVES["mlm"].collator(own, data, 1)
    short = RECIPES["mlm"].model_fields["data"].annotation(train=["x"], masking=what, max_length=64)
    rows = OBJECTIVES["mlm"].encode(Rows.of("text", prose(3000)), own, short, Limits(64, {}), False)
    packed = rows.packed(128)
    assert any(len(row) > 1 for row in packed.shared)
    for row in range(len(packed)):
        content = packed[3, row]
        together = collate.scored(content)
        apart = [collate.scored(rows[3, int(text)]) for text in content["numbers"]]
        for one, many in zip(together, zip(*apart, strict=True), strict=True):
            assert (one == np.concatenate(many)).all()
    assert any((collate.scored(rows[0, 0])[1] != collate.scored(rows[e, 0])[1]).any() for e in (1, None))


def starts_of(kind: str, text: str) -> list[str]:
    """The words that are masked whole, as the parts of the text that their tokens stand for."""
    learnt = [" ".join(text), text] if kind.startswith("wordpiece") else [" ".join(text)]
    own = train_tokenizer.train_tokenizer(kind, learnt, OBJECTIVES["mlm"].special_tokens)
    ((ids, starts),) = tokenizing.ids_and_words(own, [Piece(text)])
    bounds = [*np.flatnonzero(starts), len(ids)]
    return [own.decode(ids[a:b]).strip() for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("kind", ["wordpiece:100", "bpe:300", "unigram:60", "char", "byte"])
def test_a_korean_word_is_what_stands_between_spaces_a_chinese_or_thai_one_a_character(kind: str):
    assert starts_of(kind, "나는 학교에 갑니다")[-3:] == ["나는", "학교에", "갑니다"]
    chinese = [word for word in starts_of(kind, "我们去学校吧") if word]
    assert len(chinese) >= 5 and "".join(chinese) == "我们去学校吧"
    mixed = starts_of(kind, "see the 学校 now")
    assert mixed[:2] == ["see", "the"] and mixed[-1] == "now" and {"学", "校"} <= {word.strip() for word in mixed}


def test_what_knows_no_words_is_refused(monkeypatch: pytest.MonkeyPatch):
    own, data, _ = encoded("unigram:300", "word")
    whole = train_tokenizer.with_special_tokens(
        type(own.backend_tokenizer).from_str(own.backend_tokenizer.to_str()), OBJECTIVES["mlm"].special_tokens
    )
    whole.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(InputError, match="--masking token"):
        OBJECTIVES["mlm"].collator(whole, data, 1)


@pytest.mark.parametrize("options", [[], ["--packing-strategy", "blocks"], ["--no-packing", "--sample-by", "line"]])
def test_a_stream_and_two_processes_mask_what_memory_and_one_do(options: list[str]):
    from itertools import islice

    from lmtrain.data.reading import RowReader
    from lmtrain.data.sources import open_tables
    from lmtrain.preprocessing.stream import Stream, StreamState

    Path("c.txt").write_text("".join(f"{line}\n" for line in sentences(120)))
    own, _, _ = encoded("bpe:400", "word")
    settings = {"packing_strategy": "blocks"} if "blocks" in options else {"packing": "--no-packing" not in options}
    data = (
        RECIPES["mlm"]
        .model_fields["data"]
        .annotation(train=["c.txt"], masking="span", max_length=32, mask_schedule="0.4:0.1", **settings)
    )

    def stream(process: tuple[int, int] = (0, 1)) -> Stream:
        def encode(rows: Rows) -> Examples:
            return OBJECTIVES["mlm"].encode(rows, own, data, Limits(None, {}), False)

        return Stream(
            RowReader(open_tables(["c.txt"], data), data),
            encode,
            OBJECTIVES["mlm"].collator(own, data, 1),
            1,
            2,
            5,
            process,
            steps=120,
        )

    whole = stream()
    batches, states = [], [whole.state]
    for batch in islice(whole, 120):
        batches.append(batch)
        states.append(whole.state)
    resumed = stream()
    resumed.state = StreamState.from_json(states[13].to_json())
    for batch, wanted in zip(islice(resumed, 5), batches[13:], strict=False):
        assert all((batch[name] == wanted[name]).all() for name in wanted)
    shares = [float((batch["labels"] != IGNORED).sum() / batch["attention_mask"].sum()) for batch in batches]
    assert np.mean(shares[:40]) > 1.5 * np.mean(shares[-40:])
    memory = OBJECTIVES["mlm"].encode(_loaded(data), own, data, Limits(None, {}), False)
    first = [tuple(row) for row in memory.columns["word_starts"]]
    streamed: list[tuple[int, ...]] = []
    for content, state in stream()._rows():
        if state.epoch:
            break
        streamed.append(tuple(content["word_starts"]))
    # Parts of a stream are rows of memory; a word is only cut through where a row is.
    assert sorted(streamed) == sorted(first)


def _loaded(data: Any) -> Rows:
    from lmtrain.data.reading import load

    return load(["c.txt"], data)


def test_the_share_falls_from_step_to_step_the_same_in_every_layout():
    own, _, examples = encoded("wordpiece:400", "word")
    data = (
        RECIPES["mlm"]
        .model_fields["data"]
        .annotation(train=["x"], masking="word", max_length=512, mask_schedule="0.3:0.15")
    )
    collate = OBJECTIVES["mlm"].collator(own, data, 1)

    def shares(size: int, accum: int, processes: int) -> list[np.ndarray]:
        """Of each step of two epochs how much is predicted of each of its rows."""
        parts = [
            BatchSampler(examples, 1, size, process=(n, processes), grad_accum=accum, epochs=2.0)
            for n in range(processes)
        ]
        steps: dict[int, list] = {}
        for epoch in range(2):
            for part in parts:
                part.set_epoch(epoch)
                for number, keys in enumerate(part):
                    rows = [collate.scored(examples[key])[1] for key in keys if key[1] < len(examples)]
                    steps.setdefault(epoch * 1000 + number // accum, []).extend(
                        (row != IGNORED).mean() for row in rows
                    )
        return [np.sort(step) for step in steps.values()]

    one = shares(8, 1, 1)
    assert one[0].mean() == pytest.approx(0.3, abs=0.01)
    assert one[-1].mean() == pytest.approx(0.15, abs=0.01)
    middle = np.mean([step.mean() for step in one[len(one) // 2 - 2 : len(one) // 2 + 2]])
    assert middle == pytest.approx(0.225, abs=0.01)
    for layout in ((2, 4, 1), (4, 1, 2)):
        assert all((a == b).all() for a, b in zip(one, shares(*layout), strict=True))
    assert (collate.scored(row_of(examples, None))[1] != IGNORED).mean() == pytest.approx(0.15, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["word", "span"])
def test_a_run_is_resumed_to_the_bit_and_evaluated_the_same(what: str, material: Path):
    flags = [
        "mlm",
        *scratch("bert"),
        "--data",
        material / "prose.txt",
        "--masking",
        what,
        "--mask-schedule",
        "0.4:0.2",
        "--max-steps",
        8,
        "--save-every",
        4,
        "--eval-every",
        4,
        "-b",
        4,
        "--lr",
        1e-3,
    ]
    whole = trained(*flags, "-o", "whole")
    trained(*flags, "-o", "halves")
    shutil.rmtree("halves/checkpoints/checkpoint-8")
    trained(*flags, "-o", "halves", "--resume", "auto")
    assert outcome_of("whole") == outcome_of("halves")
    again = lmtrain("eval", "--model", "whole", "--json", "--quiet").json
    assert again["metrics"]["eval_loss"] == pytest.approx(whole["metrics"]["eval_loss"], rel=1e-6)
    assert f"masks:0.15x80/10/10x{what}" in again["signatures"]["eval_loss"]
    assert math.isfinite(again["metrics"]["eval_loss"])


def test_preview_shows_words_masked_whole(bert: Path, material: Path):
    shown = lmtrain(
        "preview",
        "mlm",
        "--model",
        bert,
        "--data",
        material / "text.jsonl",
        "--masking",
        "word",
        "--json",
        "--quiet",
        "--mask-split",
        "100/0/0",
    ).json
    tokens = [row["tokens"] for batch in shown["batches"] for row in batch["rows"]]
    assert any(token["role"] == "masked" for row in tokens for token in row)
    own = json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"]
    entries = {number: entry for entry, number in own.items()}
    for row in tokens:
        for before, token in itertools.pairwise(row):
            if entries[token.get("label", token["id"])].startswith("##"):
                assert ("label" in token) == ("label" in before)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--mask-schedule", "0.3"], "--mask-schedule"),
        (["--mask-schedule", "0.3:.0"], "above 0"),
        (["--masking", "words"], "token"),
    ],
)
def test_what_is_no_masking_is_refused(flags: list[str], told: str):
    outcome = lmtrain("mlm", "--model", "bert", "--data", "x", *flags, "--dry-run")
    assert outcome.code == 2 and told in outcome.err
