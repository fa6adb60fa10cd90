"""What is lost between text and ids is counted and reported."""

import pytest
from tiny_tokenizers import KINDS, MIXED, ROLES, byte_bpe, metaspace_bpe, unigram, word_level, wordpiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmtrain.config.data import ClmData, PairData
from lmtrain.data.rows import Rows
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import lost_text
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.vocabulary import unknown_id

LATIN = ["hello tiny model", "a model is tiny"]
KOREAN = ["안녕하세요 한국어 모델 입니다"]


def wrapped(tokenizer: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **{**ROLES, **roles}
    )


def reported(tokenizer: PreTrainedTokenizerFast, rows: Rows, objective: str = "clm") -> tuple[list[str], Examples]:
    data = PairData(train=["x"]) if objective == "seq2seq" else ClmData(train=["x"])
    examples = OBJECTIVES[objective].encode(rows, tokenizer, data, Limits(64, {}), False)
    lost_text.count_unknown(examples, tokenizer)
    return lost_text.warnings(tokenizer, rows, examples, "--data", OBJECTIVES[objective].writes), examples


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_the_tokenizer_knows_loses_nothing(kind: str):
    tokenizer = wrapped(KINDS[kind]())
    assert lost_text.measure(tokenizer, MIXED).lost == 0
    warnings, examples = reported(tokenizer, Rows.of("text", [*MIXED]))
    assert not warnings
    assert examples.ledger.tokens_unknown == 0


@pytest.mark.parametrize("make", [metaspace_bpe, unigram, wordpiece, word_level])
def test_script_without_tokens_is_named(make):
    tokenizer = wrapped(make(LATIN))
    ((warning,), examples) = reported(tokenizer, Rows.of("text", [*LATIN * 3, *KOREAN * 2]))
    ids = [tokenizer(text)["input_ids"] for text in [*LATIN * 3, *KOREAN * 2]]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
    assert examples.ledger.tokens_unknown == unknown > 0
    assert f"{unknown} of {sum(map(len, ids)) + len(ids)} tokens" in warning
    assert "all of the Korean text is lost" in warning
    assert "<unk>, such as '" in warning
    assert "--tokenizer bpe:8000 or byte" in warning


def test_characters_dropped_without_a_token_are_reported():
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("helo tinymdasĠ")}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    loss = lost_text.measure(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [*LATIN, *KOREAN * 2])
    assert loss.scripts == ["Korean"]
    assert 0.2 < loss.share < 0.8
    rows = Rows.of("text", [*LATIN, *KOREAN * 2])
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="h")
    warnings, examples = reported(own, rows)
    assert "the tokenizer loses" in warnings[0]
    assert "all of the Korean text is lost" in warnings[0]
    assert examples.ledger.tokens_unknown == 0


def test_unknown_tokens_of_targets_are_reported():
    pairs = [(f"name is {n}", f'{{"name": {n}}}', f'{{"name": {n}}}') for n in range(4)]
    tokenizer = wrapped(word_level(["name is 0 1 2 3", '"name":']))
    ((warning,), examples) = reported(tokenizer, Rows.of("pairs", pairs), "seq2seq")
    assert "8 of them are in targets, so the model learns to write <unk>" in warning
    assert examples.ledger.tokens_unknown == 8


def test_line_breaks_that_cannot_be_written_are_reported():
    pairs = [("model", "hello\ntiny model", "")] * 3
    ((warning,), _) = reported(wrapped(wordpiece(LATIN)), Rows.of("pairs", pairs), "seq2seq")
    assert "3 of 3 texts to learn lose their line breaks" in warning
    assert not reported(wrapped(byte_bpe(LATIN)), Rows.of("pairs", pairs), "seq2seq")[0]


def test_unknown_token_that_is_written_in_the_text_is_counted_and_nothing_lost():
    warnings, examples = reported(wrapped(wordpiece(LATIN)), Rows.of("text", ["hello <unk> model"] * 3))
    assert examples.ledger.tokens_unknown == 3
    assert not warnings


def test_unknown_token_that_is_the_end_token_is_not_counted():
    tokenizer = wrapped(byte_bpe(), unk_token="</s>", eos_token="</s>")
    assert unknown_id(tokenizer) is None
    assert reported(tokenizer, Rows.of("text", [*MIXED]))[1].ledger.tokens_unknown == 0


def test_windows_count_an_unknown_token_once():
    tokenizer = wrapped(word_level(LATIN))
    rows = Rows.of("text", ["hello 모델 is tiny 모델 model hello"])
    data = ClmData(train=["x"], stride=1, max_length=3)
    examples = OBJECTIVES["clm"].encode(rows, tokenizer, data, Limits(64, {}), True)
    lost_text.count_unknown(examples, tokenizer)
    assert examples.ledger.tokens_unknown == 2


def test_sample_reaches_all_of_the_data():
    rows = Rows.of("text", [f"{number} {'word ' * 200}" for number in range(5000)])
    numbers = [int(text.split()[0]) for text in lost_text.sample(rows)]
    assert numbers[0] == 0
    assert numbers[-1] > 4900
    assert sum(map(len, lost_text.sample(rows))) <= lost_text.CHARACTERS


def test_sample_of_a_chunk_of_a_stream():
    from array import array
    from dataclasses import replace

    rows = replace(Rows.of("text", [*MIXED]), groups=array("q"))  # a stream holds nothing out, and has no groups
    assert lost_text.sample(rows) == [*MIXED]


def test_slow_tokenizer_loses_nothing():
    from transformers import ByT5Tokenizer

    pairs = [("안녕하세요", "hello tiny model", ""), ("a", "b\nc", "")]
    warnings, examples = reported(ByT5Tokenizer(), Rows.of("pairs", pairs), "seq2seq")
    assert not warnings
    assert examples.ledger.tokens_unknown == 0
    assert not reported(ByT5Tokenizer(), Rows.of("pairs", pairs[:1]), "seq2seq")[0]
