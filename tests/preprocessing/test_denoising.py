"""Noise on ids: nothing of a text is lost, limits hold, the laws of the papers; runs from nothing, resumed to the bit."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY, lmtrain, outcome_of, sentences, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.config.recipe import RECIPES
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import denoising, tokenizing, train_tokenizer
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.denoising import GapSentences, Infilling, PairTemplate, SpanCorruption, gap_sentences
from lmtrain.preprocessing.sampler import count_trained
from lmtrain.preprocessing.text_pieces import Piece

KINDS = ("span-corruption", "infilling", "gap-sentences")
END, MASK, SENTINELS = 1, 2, np.arange(3, 103)
TEMPLATE = PairTemplate(([], [END]), ([], [END]))
LENGTHS, SHARES, NUMBERS = st.integers(1, 120), st.floats(0.05, 0.9), st.integers(0, 1 << 20)


def text_of(length: int) -> np.ndarray:
    """No id twice, so that every one can be told from all others."""
    return np.arange(1000, 1000 + length)


@given(LENGTHS, SHARES, st.floats(1, 6), NUMBERS)
@settings(deadline=None, max_examples=300)
def test_span_corruption_gives_the_text_back_when_spans_are_put_in_their_places(n, density, mean, number):
    noise = SpanCorruption(density, mean, SENTINELS, TEMPLATE)
    source, target = noise(text_of(n), None, number, (7, 1))
    assert (len(source), len(target)) == tuple(int(size) for size in noise.sizes(np.array(n)))
    assert source[-1] == target[-1] == END
    source, target = source[:-1].tolist(), target[:-1].tolist()
    used = [i for i in target if i < 1000]
    assert used == SENTINELS[: len(used)].tolist(), "every span behind its sentinel, and one sentinel for the end"
    spans = {s: target[target.index(s) + 1 : target.index(e)] for s, e in itertools.pairwise(used)}
    whole = [part for i in source for part in (spans[i] if i < 1000 else [i])]
    assert whole == text_of(n).tolist()
    missing = sum(map(len, spans.values()))
    assert all(spans.values())
    assert missing == min(max(round(n * density), 1), max(n - 1, 1))
    assert len(spans) == min(max(round(missing / mean), 1), max(n - missing, 1))


@given(LENGTHS, SHARES, st.floats(1, 6), NUMBERS, st.sets(st.integers(1, 119)))
@settings(deadline=None, max_examples=300)
def test_infilling_shuffles_sentences_and_loses_nothing(n, density, mean, number, borders):
    noise = Infilling(density, mean, MASK, TEMPLATE)
    ids = text_of(n)
    starts = np.isin(np.arange(n), [0, *borders])
    source, target = noise(ids, starts, number, (7, 1))
    assert (len(source), len(target)) == tuple(int(size) for size in noise.sizes(np.array(n)))
    assert target.tolist() == [*ids.tolist(), END]
    assert source[-1] == END
    masks = int((source == MASK).sum())
    kept = source[(source != MASK) & (source != END)]
    assert n - len(kept) == min(max(round(n * density), 1), n)
    assert not ((source[1:] == MASK) & (source[:-1] == MASK)).any()
    assert masks == min(max(round((n - len(kept)) / mean), 1), len(kept) + 1)
    # What is kept stands sentence by sentence, each in its own order: some order of the sentences, with gaps.
    sentence = np.cumsum(starts)[kept - 1000]
    blocks = np.diff(sentence, prepend=-1) != 0
    assert len(set(sentence[blocks])) == blocks.sum()
    assert all((np.diff(kept[sentence == s]) > 0).all() for s in set(sentence))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), SHARES, st.sets(st.integers(1, 79)), st.integers(4, 100))
@settings(deadline=None, max_examples=300)
def test_gap_sentences_give_the_text_back_and_keep_to_the_limit(text, density, borders, most):
    ids = np.array(text) + 1000
    starts = np.isin(np.arange(len(ids)), [0, *borders])
    source, target = GapSentences(density, MASK, TEMPLATE)(ids, starts, most)
    gaps = gap_sentences(ids, starts, density, most - 1)
    assert len(target) <= most and source[-1] == target[-1] == END
    written, whole = iter(gaps), []
    rest = target[:-1].tolist()
    for i in source[:-1].tolist():
        start, end = next(written) if i == MASK else (0, 1)
        whole += [rest.pop(0) for _ in range(end - start)] if i == MASK else [i]
    assert whole == ids.tolist() and not rest
    begins = set(np.flatnonzero(starts))
    assert all(start in begins for start, _ in gaps)
    assert len(gaps) == 1 or all(end in begins | {len(ids)} for _, end in gaps)


def test_the_sentences_that_are_taken_are_those_with_the_best_rouge_1():
    from rouge_score.rouge_scorer import RougeScorer

    random = np.random.default_rng(3)
    scorer = RougeScorer(["rouge1"])
    for _ in range(20):
        parts = [random.zipf(1.5, size=random.integers(3, 12)) % 30 for _ in range(9)]
        ids = np.concatenate(parts)
        starts = np.concatenate([np.arange(len(part)) == 0 for part in parts])
        bounds = np.cumsum([0, *map(len, parts)])
        words = [" ".join(f"w{i}" for i in part) for part in parts]
        rest = [" ".join(words[:n] + words[n + 1 :]) for n in range(9)]
        scores = [scorer.score(other, own)["rouge1"].fmeasure for own, other in zip(words, rest, strict=True)]
        taken = gap_sentences(ids, starts, 0.34, 1000)
        assert len(taken) == 3
        inside = [n for n in range(9) if (bounds[n], bounds[n + 1]) in taken]
        assert min(scores[n] for n in inside) >= max(s for n, s in enumerate(scores) if n not in inside) - 1e-12


def test_spans_are_as_the_papers_say():
    infilling = Infilling(0.3, 3.0, MASK, TEMPLATE)
    corruption = SpanCorruption(0.15, 3.0, SENTINELS, TEMPLATE)
    ids, starts = text_of(500), np.zeros(500, bool)
    lengths, first = [], []
    for number in range(400):
        source, _ = infilling(ids, starts, number, (1, 1))
        at = np.flatnonzero(source == MASK)
        edge = np.concatenate([[999], source[:-1], [1500]])
        lengths += [edge[i + 2 if i + 2 < len(source) else -1] - edge[i] - 1 for i in at]
        is_sentinel = corruption(ids, None, number, (1, 1))[0] < 1000
        first.append((np.flatnonzero(is_sentinel)[0], is_sentinel[-2]))
    shares = np.bincount(lengths, minlength=12)[:9] / len(lengths)
    poisson = np.array([np.exp(-3) * 3.0**k / np.prod(np.arange(1, k + 1)) for k in range(9)])
    assert shares == pytest.approx(poisson, abs=0.012)
    source, target = (int(size) for size in corruption.sizes(np.array(568)))
    assert (source, target) == (512, 115), "T5 makes rows of 512 of 568 tokens"
    starts_with, ends = np.array(first).mean(0)
    assert starts_with == pytest.approx(427 / 26 - 1, rel=0.15)
    assert 0.02 < ends < 0.12 and 0.02 < np.mean([at == 0 for at, _ in first]) < 0.12


def made(denoise: str, **options: Any) -> tuple[Any, Any]:
    own = train_tokenizer.train_tokenizer(
        "unigram:120", sentences(60), denoising.special_tokens_for(OBJECTIVES["seq2seq"].special_tokens, denoise)
    )
    return own, RECIPES["seq2seq"].model_fields["data"].annotation(train=["x"], denoise=denoise, **options)


def encoded(denoise: str, measure: bool = False, **options: Any) -> tuple[Any, Any, Examples, Limits]:
    own, data = made(denoise, **options)
    lines = [f"{line}. " + "Then so on! " * (i % 5) for i, line in enumerate(sentences(90))]
    examples = OBJECTIVES["seq2seq"].encode(Rows.of("text", lines), own, data, Limits(None, {}), measure)
    return own, data, examples, examples.limits


@pytest.mark.parametrize("denoise", KINDS)
@pytest.mark.parametrize(("source", "target"), [(None, None), (24, None), (24, 9), (16, 40)])
def test_no_row_is_longer_than_the_limits_and_the_ledger_balances(
    denoise: str, source: int | None, target: int | None
):
    own, data, examples, limits = encoded(denoise, max_source_length=source, max_target_length=target)
    collate = OBJECTIVES["seq2seq"].collator(own, data, 3)
    ledger = examples.ledger
    assert ledger.balances() and ledger.rows_used == 90 and not ledger.tokens_truncated + ledger.tokens_dropped
    sizes = examples.lengths_by_column()
    trained_tokens = 0
    for epoch in (0, 1):
        for row in range(len(examples)):
            shown, labels = collate.scored(examples[epoch, row])
            assert (len(shown), len(labels)) == (sizes[0][row], sizes[1][row])
            assert len(shown) <= (source or 512) and len(labels) <= (target or 1024)
            trained_tokens += len(labels) if epoch == 0 else 0
    count_trained(examples, collate, 0)
    assert examples.ledger.tokens_trained == trained_tokens
    assert limits.resolved == {
        "max_source_length": source or max(sizes[0]),
        "max_target_length": target or max(sizes[1]),
    }
    if denoise != "gap-sentences":
        assert examples.ledger.tokens_used == len(examples.columns["input_ids"].values)


@pytest.mark.parametrize("denoise", KINDS[:2])
def test_noise_is_new_every_epoch_a_function_of_the_text_and_fixed_at_evaluation(denoise: str):
    own, data, examples, limits = encoded(denoise, max_source_length=24)
    first, other = OBJECTIVES["seq2seq"].collator(own, data, 3), OBJECTIVES["seq2seq"].collator(own, data, 4)
    batch = first([examples[0, row] for row in (5, 2, 9)])
    alone = first([examples[0, 2]])
    length = int(alone["attention_mask"].sum())
    assert (batch["input_ids"][1, :length] == alone["input_ids"][0]).all()
    shown = [
        [tuple(collate.scored(examples[e, row])[0]) for row in range(40)]
        for collate, e in ((first, 0), (first, 0), (first, 1), (other, 0))
    ]
    assert shown[0] == shown[1] and shown[0] != shown[2] and shown[0] != shown[3]
    lines = [f"{line}. " + "Then so on! " * (i % 5) for i, line in enumerate(sentences(90))]
    held = [
        OBJECTIVES["seq2seq"].encode(Rows.of("text", lines), own, data, Limits(None, dict(limits.resolved)), True)
        for _ in range(2)
    ]
    assert all((a == b).all() for a, b in zip(*(h.columns["labels"] for h in held), strict=True))
    assert len(held[0]) == len(examples)
    text, (source, reference) = examples.columns["input_ids"][0], held[0].texts[0]
    assert own.decode(text.tolist(), skip_special_tokens=True)[:5] in lines[0]
    assert ("<extra_id_0>" if denoise == "span-corruption" else "<mask>") in source
    assert ("<extra_id_0>" in reference) == (denoise == "span-corruption")  # the model learns to write it
    assert not any(mark in reference for mark in ("<pad>", "<s>", "</s>"))


TEXTS = [
    ("One is here. Two is there! (Is it?) e.g. that one. A", ["One", "Two", "(Is", "A"]),
    ("그는 갔다. 그녀는 남았다! 왜? 모른다.", ["그는", "그녀는", "왜", "모른다"]),
    ("他走了。她留下了！「为什么？」不知道。", ["他", "她", "「", "不"]),
    ("A title\n\nThe text goes on\nand on. End", ["A", "The", "End"]),
]


@pytest.mark.parametrize(("text", "firsts"), TEXTS)
def test_where_sentences_begin(text: str, firsts: list[str]):
    own = train_tokenizer.train_tokenizer("char", [text], OBJECTIVES["seq2seq"].special_tokens)
    ((ids, starts),) = tokenizing.ids_and_sentences(own, [Piece(text)])
    bounds = [*np.flatnonzero(starts), len(ids)]
    found = [own.decode(ids[a:b]).strip() for a, b in itertools.pairwise(bounds)]
    assert len(found) == len(firsts)
    assert all(sentence.startswith(first) for sentence, first in zip(found, firsts, strict=True))


def test_a_sentence_goes_on_over_the_lines_of_a_running_text():
    text = "It was a day\nlike any other. Then\n\nnight fell.\nMorning\n"
    own = train_tokenizer.train_tokenizer("char", [text], OBJECTIVES["seq2seq"].special_tokens)
    ((ids, starts),) = tokenizing.ids_and_sentences(own, [Piece(text)])
    bounds = [*np.flatnonzero(starts), len(ids)]
    found = [own.decode(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    assert found == ["It was a day\nlike any other.", " Then", "\n\nnight fell.", "\nMorning\n"]


def test_what_the_tokenizer_lacks_is_said():
    own, _ = made("none")
    plain = SimpleNamespace(denoise="span-corruption", noise=(0.15, 3.0))
    with pytest.raises(InputError, match="extra_id_0"):
        denoising.noise_for(own, plain)
    with pytest.raises(InputError, match="mask token"):
        denoising.noise_for(own, SimpleNamespace(denoise="infilling", noise=(0.3, 3.0)))
    few = SpanCorruption(0.5, 1.0, SENTINELS[:5], TEMPLATE)
    with pytest.raises(InputError, match=r"need 11 sentinels, the tokenizer has 5.*--mean-span-length"):
        few(text_of(20), None, 0, (1, 1))


def test_byt5_has_sentinels_of_its_own():
    from transformers import ByT5Tokenizer

    own = ByT5Tokenizer()
    noise = denoising.noise_for(own, SimpleNamespace(denoise="span-corruption", noise=(0.15, 20.0)))
    source, target = noise(
        np.array(own("a text of some bytes", add_special_tokens=False)["input_ids"]), None, 1, (1, 1)
    )
    assert own.convert_tokens_to_ids("<extra_id_0>") in source and target[0] == own.convert_tokens_to_ids(
        "<extra_id_0>"
    )
    assert source[-1] == target[-1] == own.eos_token_id


SIZES = {
    "t5": TINY["t5"],
    "bart": "d_model=32,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,"
    "encoder_ffn_dim=64,decoder_ffn_dim=64,max_position_embeddings=64",
    "pegasus": "d_model=32,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,"
    "encoder_ffn_dim=64,decoder_ffn_dim=64,max_position_embeddings=64",
}


def flags(model: str, denoise: str, data: Path) -> list[Any]:
    return [
        "seq2seq",
        "--from-scratch",
        "--model",
        model,
        "--model-config",
        SIZES[model],
        "--tokenizer",
        "unigram:60",
        "--denoise",
        denoise,
        "--data",
        data,
        "--max-source-length",
        32,
        "--max-target-length",
        32,
        "--metric",
        "exact_match",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "denoise"), [("t5", "span-corruption"), ("bart", "infilling"), ("pegasus", "gap-sentences")]
)
def test_from_nothing_the_loss_falls_and_a_run_is_resumed_to_the_bit(model: str, denoise: str, material: Path):
    more = ["--max-steps", 24, "--save-every", 12, "--eval-every", 12, "--lr", "5e-3", "-b", 4]
    whole = trained(*flags(model, denoise, material / "prose.txt"), *more, "-o", "whole")
    assert whole["metrics"]["eval_loss"] < whole["initial_metrics"]["eval_loss"] - 0.3
    assert whole["data"]["kind"] == "text"
    ledger = whole["data"]["train"]
    assert (
        ledger["tokens_read"] == ledger["tokens_used"]
        and ledger["rows_read"] == ledger["rows_used"] + ledger["rows_empty"]
    )
    shutil.copytree("whole", "halves")
    shutil.rmtree("halves/checkpoints/checkpoint-24")
    trained(*flags(model, denoise, material / "prose.txt"), *more, "-o", "halves", "--resume", "auto")
    assert outcome_of("whole") == outcome_of("halves")
    again = lmtrain("eval", "--model", "whole", "--json", "--quiet").json
    assert again["metrics"]["eval_loss"] == pytest.approx(whole["metrics"]["eval_loss"], rel=1e-6)
    assert f"noise:{denoise}" in again["signatures"]["eval_loss"]


def test_a_stream_of_noise_is_resumed_to_the_bit(material: Path):
    Path("held.txt").write_text("".join(f"{line}.\n" for line in sentences(20)))
    base = [
        *flags("t5", "infilling", material / "prose.txt"),
        "--streaming",
        "--shuffle-buffer",
        50,
        "--eval-data",
        "held.txt",
        "--eval-every",
        6,
        "--save-every",
        6,
        "-b",
        4,
    ]
    trained(*base, "--max-steps", 12, "-o", "whole")
    shutil.copytree("whole", "halves")
    shutil.rmtree("halves/checkpoints/checkpoint-12")
    trained(*base, "--max-steps", 12, "-o", "halves", "--resume", "auto")
    assert outcome_of("whole") == outcome_of("halves")


@pytest.mark.parametrize(
    ("denoise", "sign"), [("span-corruption", "<extra_id_0>"), ("infilling", "<mask>"), ("gap-sentences", "<mask_1>")]
)
def test_preview_shows_source_and_target_with_their_marks(denoise: str, sign: str, material: Path):
    command = ["preview", *flags("t5", denoise, material / "prose.txt")]
    shown = lmtrain(*command, "--json", "--quiet").json
    rows = [row for batch in shown["batches"] for row in batch["rows"]]
    assert all(any(token["text"] == sign for token in row["source"]) for row in rows)
    targets = [{token["text"] for token in row["labels"] if token["role"] == "trained"} for row in rows]
    assert all(("<extra_id_0>" in target) == (denoise == "span-corruption") for target in targets)
    assert sign in lmtrain(*command, "--quiet").out


@pytest.mark.parametrize(
    ("given_flags", "told"),
    [
        (["--noise-density", "0.2"], "--noise-density: only with --denoise"),
        (["--text-column", "text"], "--text-column: only with --denoise"),
        (["--denoise", "infilling", "--source-column", "a"], "--source-column: for data with pairs"),
        (["--denoise", "gap-sentences", "--mean-span-length", "3"], "--mean-span-length"),
        (["--on-long", "split"], "--on-long split"),
        (["--denoise", "infiling"], "infilling"),
    ],
)
def test_what_does_not_go_together_is_refused(given_flags: list[str], told: str):
    outcome = lmtrain("seq2seq", "--model", "t5-small", "--data", "x", *given_flags, "--dry-run")
    assert outcome.code == 2 and told in " ".join(outcome.err.split())


def test_labels_are_all_trained(material: Path):
    own, data, examples, _ = encoded("span-corruption", measure=True)
    batch = OBJECTIVES["seq2seq"].collator(own, data, 1)([examples[None, 0], examples[None, 1]])
    assert int((batch["labels"] != IGNORED).sum()) == sum(examples.columns["labels"].lengths[:2])
    assert json.dumps(examples.texts[0])
