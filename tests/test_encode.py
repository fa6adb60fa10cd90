"""Rows -> ids -> batches: what is trained, what is cut, and that nothing disappears."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import lmtrain, sentences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtrain import collate, encode, tokenizer
from lmtrain.batching import Order, padding_fraction
from lmtrain.errors import InputError, UsageError
from lmtrain.objectives import OBJECTIVES
from lmtrain.recipe import RECIPES
from lmtrain.sources import Rows

WORDS = sentences(60)


def made(objective: str, kind: str = "bpe:300"):
    return tokenizer.train(kind, WORDS, OBJECTIVES[objective].frame)


def rows_of(values: list, kind: str, running: bool = False) -> Rows:
    return Rows.of(kind, values, running=running)


def encoded(objective: str, values: list, kind: str, running: bool = False, positions: int | None = None, measure: bool = False,
            made_with: str = "bpe:300", **options: object):  # fmt: skip
    data = RECIPES[objective].model_fields["data"].annotation(train=["x"], **options)
    made_tokenizer = made(objective, made_with)
    if kind == "messages":
        from lmtrain.chat import ensure_template

        ensure_template(made_tokenizer)
    rows = rows_of(values, kind, running)
    limits = encode.Limits(positions, {})
    return OBJECTIVES[objective].encode(rows, made_tokenizer, data, limits, measure), made_tokenizer, data


def trained_tokens(examples, made_tokenizer, data, objective: str) -> Counter:
    batch = OBJECTIVES[objective].collate(made_tokenizer, data, 1)([examples[0, row] for row in range(len(examples))])
    return Counter(batch["labels"][batch["labels"] != -100].tolist())


texts = st.lists(st.text(alphabet="abc 가나🙂\n", min_size=1, max_size=40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, st.integers(2, 20), st.booleans(), st.booleans())
def test_every_token_of_a_text_is_trained_but_the_first_of_each_row(
    values: list[str], length: int, packing: bool, running: bool
):
    examples, made_tokenizer, data = encoded(
        "clm", values, "text", running and packing, made_with="byte", max_length=length, packing=packing
    )
    documents = ["".join(values)] if running and packing else values
    wanted = [[made_tokenizer.bos_token_id, *(b + 0 for b in made_tokenizer(d, add_special_tokens=False)["input_ids"]),
               made_tokenizer.eos_token_id] for d in documents]  # fmt: skip
    streams = [[token for document in wanted for token in document]] if packing else wanted
    reference = Counter(
        token for stream in streams for i in range(0, len(stream), length) for token in stream[i : i + length][1:]
    )
    assert trained_tokens(examples, made_tokenizer, data, "clm") == reference
    assert examples.ledger.balances()
    assert examples.ledger.tokens_used == sum(map(len, streams)) == int(examples.columns["input_ids"].lengths.sum())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, st.integers(4, 20), st.booleans(), st.sampled_from(["split", "truncate", "drop"]))
def test_masked_rows_hold_every_token_and_the_ledger_balances(
    values: list[str], length: int, packing: bool, on_long: str
):
    try:
        examples, made_tokenizer, _ = encoded("mlm", values, "text", max_length=length, packing=packing, on_long=on_long,
                                              made_with="char")  # fmt: skip
    except InputError as error:
        assert "no row is left" in str(error)
        return
    ledger = examples.ledger
    assert ledger.balances()
    special = set(made_tokenizer.all_special_ids) - {made_tokenizer.unk_token_id}
    kept = [int(i) for row in range(len(examples)) for i in examples[0, row]["input_ids"] if int(i) not in special]
    text = [len(made_tokenizer(value, add_special_tokens=False)["input_ids"]) for value in values]
    separators = ledger.tokens_read - sum(text)
    assert 0 <= separators <= len(values) - 1
    assert len(kept) + ledger.tokens_truncated + ledger.tokens_dropped >= sum(text) - separators
    assert max(len(examples[0, row]["input_ids"]) for row in range(len(examples))) <= length


@pytest.mark.parametrize(("policy", "fates"), [("truncate", (2, 1, 0)), ("drop", (1, 0, 1)), ("split", (2, 0, 0))])
def test_a_long_text_is_cut_left_out_or_split_and_counted(policy: str, fates: tuple[int, int, int]):
    examples, *_ = encoded(
        "clm", ["ab", "a" * 50], "text", made_with="byte", max_length=10, packing=False, on_long=policy
    )
    ledger = examples.ledger
    assert (ledger.rows_used, ledger.rows_truncated, ledger.rows_dropped) == fates
    assert ledger.balances()
    assert ledger.tokens_read == 2 + 2 + 50 + 2


def test_a_long_text_can_be_an_error_that_names_its_row():
    with pytest.raises(InputError, match="made up, line 2: 52 tokens, the limit is 10"):
        encoded("clm", ["ab", "a" * 50], "text", made_with="byte", max_length=10, packing=False, on_long="error")


def test_only_the_completion_and_its_end_are_trained():
    examples, made_tokenizer, data = encoded("clm", [("What?", "the cat"), ("Why? ", "the dog")], "prompt")
    batch = collate.causal(made_tokenizer, data, 1)([examples[0, 0], examples[0, 1]])
    for ids, labels, text, whole in zip(batch["input_ids"], batch["labels"], ("the cat</s>", "the dog</s>"),
                                        ("<s>What?\nthe cat</s>", "<s>Why? the dog</s>"), strict=True):  # fmt: skip
        assert made_tokenizer.decode(labels[labels != -100]) == text
        assert made_tokenizer.decode(ids).startswith(whole)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "the dog"},
]


@pytest.mark.parametrize(
    ("template", "trained"), [(None, "the cat</s>the dog</s>"), (CHATML, "the cat<|im_end|>the dog<|im_end|>")]
)
def test_only_the_assistants_turns_and_their_ends_are_trained(template: str | None, trained: str):
    from lmtrain import chat

    made_tokenizer = made("clm", "byte")
    assert (chat.ensure_template(made_tokenizer) is None) is False
    made_tokenizer.chat_template = template or made_tokenizer.chat_template
    ids, mask = chat.encode(made_tokenizer, CHAT, "row 1")
    assert made_tokenizer.decode(np.array(ids)[mask]) == trained


def test_a_chat_without_room_for_an_answer_is_dropped_and_counted():
    examples, *_ = encoded("clm", [CHAT, CHAT[2:], [{"role": "user", "content": "x" * 99}, *CHAT[1:2]]], "messages",
                           made_with="byte", max_length=60)  # fmt: skip
    assert examples.ledger.rows_dropped == 1
    assert examples.ledger.rows_truncated == 1
    assert examples.ledger.balances()


def test_a_cut_target_still_ends():
    values = [("the cat", "the dog sees the cat " * 9)]
    examples, made_tokenizer, _ = encoded("seq2seq", values, "pairs", max_target_length=7)
    labels = examples[0, 0]["labels"]
    assert len(labels) == 7
    assert labels[-1] == made_tokenizer.eos_token_id
    assert examples.ledger.rows_truncated == 1
    assert examples.ledger.balances()


def test_lengths_of_pairs_come_from_the_data_and_stop_at_the_positions():
    values = [("a" * n, "b" * n) for n in range(1, 101)]
    data = RECIPES["seq2seq"].model_fields["data"].annotation(train=["x"])
    limits = encode.Limits(64, {})
    encode.pairs(rows_of(values, "pairs"), made("seq2seq", "byte"), data, limits, False)
    assert limits.resolved == {"max_source_length": 64, "max_target_length": 64}
    limits = encode.Limits(None, {})
    encode.pairs(rows_of(values, "pairs"), made("seq2seq", "byte"), data, limits, False)
    assert limits.resolved == {"max_source_length": 101, "max_target_length": 101}  # with the end token


def test_more_than_the_positions_is_refused():
    with pytest.raises(UsageError, match=r"--max-length 65: the model has 64 positions"):
        encoded("clm", ["a"], "text", positions=64, max_length=65)


def test_bytes_of_the_tokens_add_up_to_the_text():
    values = ["the cat 가나다 🙂", "\n\n é é ", "x"]
    for kind in ("bpe:300", "byte", "char", "wordpiece:100", "unigram:80"):
        made_tokenizer = made("clm", kind)
        for value, (ids, sizes) in zip(values, tokenizer.ids_and_bytes(made_tokenizer, values), strict=True):
            assert len(ids) == len(sizes)
            assert sum(sizes) == len(value.encode()) or not ids


@pytest.mark.parametrize("objective", ["clm", "mlm", "seq2seq"])
@pytest.mark.parametrize("kind", ["bpe:300", "byte", "char", "wordpiece:200", "unigram:60"])
def test_trained_tokenizers_survive_saving_and_keep_korean(objective: str, kind: str):
    from transformers import AutoTokenizer

    made_tokenizer = tokenizer.train(kind, ["가나다 라마바 the cat"] * 9, OBJECTIVES[objective].frame)
    made_tokenizer.save_pretrained("saved")
    again = AutoTokenizer.from_pretrained("saved")
    ids = again("가나다 the cat")["input_ids"]
    assert ids == made_tokenizer("가나다 the cat")["input_ids"]
    assert again.decode(ids, skip_special_tokens=True).strip() == "가나다 the cat"
    before, after = tokenizer.framing(again)
    assert [again.convert_ids_to_tokens(part) for part in (before, after)] == {
        "clm": [["<s>"], []], "mlm": [["[CLS]"], ["[SEP]"]], "seq2seq": [[], ["</s>"]],
    }[objective]  # fmt: skip


def test_a_tokenizer_is_the_same_in_every_process():
    """The trainers of the tokenizers library break ties in the order of a hash table."""
    code = (
        "from lmtrain import tokenizer\nfrom lmtrain.objectives import OBJECTIVES\nimport sys, hashlib\n"
        "texts = ['the cat sees the dog and the king', 'a child follows the river'] * 20\n"
        "for kind in ('bpe:290', 'wordpiece:70', 'unigram:40', 'char', 'byte'):\n"
        "    made = tokenizer.train(kind, texts, OBJECTIVES['mlm'].frame)\n"
        "    print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())\n"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2", "3")
    ]  # fmt: skip
    assert len(outputs[0].splitlines()) == 5
    assert outputs[0] == outputs[1] == outputs[2]


# --- masks and order -------------------------------------------------------------------------------------------------


def test_masks_keep_their_shares_and_spare_special_tokens():
    examples, made_tokenizer, data = encoded("mlm", WORDS * 60, "text", max_length=64, mask_split="80/10/10")
    collator = collate.masked(made_tokenizer, data, 1)
    rows = [examples[0, row] for row in range(len(examples))]
    batch = collator(rows)
    original = collate.padded([row["input_ids"] for row in rows], made_tokenizer.pad_token_id)
    chosen = batch["labels"] != -100
    special = np.isin(original.numpy(), made_tokenizer.all_special_ids)
    assert not (chosen.numpy() & special).any()
    assert (batch["labels"][chosen] == original[chosen]).all()
    assert (batch["input_ids"][~chosen] == original[~chosen]).all()
    share = chosen.sum().item() / (~special).sum()
    masked = (batch["input_ids"][chosen] == made_tokenizer.mask_token_id).float().mean().item()
    kept = (batch["input_ids"][chosen] == original[chosen]).float().mean().item()
    assert share == pytest.approx(0.15, abs=0.01)
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)


def test_masks_are_a_function_of_seed_epoch_and_row():
    examples, made_tokenizer, data = encoded("mlm", WORDS, "text", max_length=32)
    collator = collate.masked(made_tokenizer, data, 1)

    def labels(epoch: int | None, row: int, others: int = 0) -> list[int]:
        batch = collator([examples[epoch, row], *(examples[epoch, i] for i in range(others))])
        return batch["labels"][0][:32].tolist()

    assert labels(0, 3) == labels(0, 3, others=4)
    assert labels(0, 3) != labels(1, 3)
    assert labels(None, 3) == labels(None, 3, others=2)
    assert collate.masked(made_tokenizer, data, 2)([examples[0, 3]])["labels"][0].tolist() != labels(0, 3)


def test_the_order_is_new_in_every_epoch_and_blank_rows_fill_it_up():
    order = Order(10, seed=1, multiple=4)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(row for _, row in first) == sorted(row for _, row in second) == [*range(10), 10, 10]
    assert [row for _, row in first] != [row for _, row in second]
    assert {epoch for epoch, _ in second} == {1}
    assert list(Order(10, seed=1, multiple=4)) == first


def test_a_blank_row_trains_nothing_in_any_objective():
    for objective, values, kind in (("clm", WORDS, "text"), ("mlm", WORDS, "text"), ("seq2seq", [("a", "b")], "pairs"),
                                    ("clm", [("a", "b")], "prompt")):  # fmt: skip
        examples, made_tokenizer, data = encoded(objective, values, kind)
        collator = OBJECTIVES[objective].collate(made_tokenizer, data, 1)
        assert (collator([examples[0, len(examples)]])["labels"] == -100).all()


def test_the_padding_fraction_counts_what_a_batch_is_filled_up_with():
    lengths = np.array([1, 3, 2, 2])
    assert padding_fraction([lengths], np.arange(4), 2) == pytest.approx(1 - 8 / 10)
    assert padding_fraction([lengths], np.array([0, 2, 3, 1]), 4) == pytest.approx(1 - 8 / 12)


def test_the_ledger_of_a_run_counts_empty_and_bad_rows(material: Path):
    lines = [json.dumps({"text": text}) for text in ["a cat", "", "a dog", None, "a king"] * 4]
    Path("mixed.jsonl").write_text("\n".join(lines))
    outcome = lmtrain("clm", "--model", "gpt2", "--from-scratch", "--tokenizer", "byte", "--model-config", "n_embd=8,n_layer=1,n_head=1",
                      "--data", "mixed.jsonl", "--on-bad", "drop", "--val-split", 0.2, "--max-steps", 1, "--json", "-o", "run")  # fmt: skip
    train, held = (outcome.json["data"][part] for part in ("train", "eval"))
    assert (train["rows_empty"], train["rows_bad"], held["rows_empty"]) == (4, 4, 0)
    assert train["rows_used"] + held["rows_used"] == 12
    assert outcome.json["data"]["shared_rows"] == held["rows_used"]
    assert "rows empty" in outcome.err
