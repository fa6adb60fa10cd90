"""From rows to ids to batches: which tokens are trained, which are cut, and that every token is counted."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import lmtrain, sentences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtrain.config.recipe import RECIPES
from lmtrain.data.chats import Chat
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import tokenizing, train_tokenizer
from lmtrain.preprocessing.batch import padded
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.packing import best_fit
from lmtrain.preprocessing.text_pieces import Piece

WORDS = sentences(60)


def made(objective: str, kind: str = "bpe:300"):
    return train_tokenizer.train_tokenizer(kind, WORDS, OBJECTIVES[objective].special_tokens)


made_once = cache(made)


def rows_of(values: list, kind: str, running: bool = False) -> Rows:
    return Rows.of(kind, [*map(Chat, values)] if kind == "messages" else values, running=running)


def encoded(
    objective: str,
    values: list,
    kind: str,
    running: bool = False,
    positions: int | None = None,
    measure: bool = False,
    made_with: str = "bpe:300",
    **options: object,
):
    data = RECIPES[objective].model_fields["data"].annotation(train=["x"], **options)
    made_tokenizer = (made if kind == "messages" else made_once)(objective, made_with)
    if kind == "messages":
        from lmtrain.preprocessing.chat import ensure_template

        ensure_template(made_tokenizer)
    rows = rows_of(values, kind, running)
    limits = Limits(positions, {})
    return OBJECTIVES[objective].encode(rows, made_tokenizer, data, limits, measure), made_tokenizer, data


def trained_tokens(examples, made_tokenizer, data, objective: str) -> Counter:
    batch = OBJECTIVES[objective].collator(made_tokenizer, data, 1)([examples[0, row] for row in range(len(examples))])
    return Counter(batch["labels"][batch["labels"] != -100].tolist())


texts = st.lists(st.text(alphabet="abc 가나🙂\n", min_size=1, max_size=40), min_size=1, max_size=8)
POLICIES = ["split", "truncate", "drop"]


def reference(ids: list[list[int]], ends: tuple[list, list], length: int, policy: str, blocks: bool) -> tuple:
    """(rows as lists of texts' pieces, tokens read, truncated, dropped) of documents, in a few lines."""
    documents = [[*ends[0], *own, *ends[1]] for own in ids]
    kept = [own for own in documents if policy != "drop" or len(own) <= length]
    used = [own[:length] if policy == "truncate" else own for own in kept]
    streams = [[token for own in used for token in own]] if blocks else used
    pieces = [stream[i : i + length] for stream in streams for i in range(0, len(stream), length)]
    read, left = sum(map(len, documents)), sum(map(len, kept))
    return pieces, read, left - sum(map(len, used)), read - left


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts,
    st.integers(2, 24),
    st.sampled_from(["none", "best-fit", "blocks"]),
    st.sampled_from(POLICIES),
    st.booleans(),
)
def test_every_token_of_a_text_is_trained_but_the_first_of_each_piece(
    values: list[str], length: int, packing: str, policy: str, running: bool
):
    running, options = running and packing != "none", {"packing": packing != "none", "max_length": length}
    policy = "split" if running else policy
    options |= {"packing_strategy": packing} if packing != "none" else {}
    try:
        examples, _, data = encoded("clm", values, "text", running, made_with="byte", on_long=policy, **options)
    except InputError as error:
        assert "no row is left" in str(error)
        examples = None
    own = made_once("clm", "byte")
    documents = ["".join(values)] if running else values
    ids = [own(document, add_special_tokens=False)["input_ids"] for document in documents]
    ends = [own.bos_token_id], [own.eos_token_id]
    pieces, read, truncated, dropped = reference(ids, ends, length, policy, packing == "blocks")
    if examples is None:
        assert not pieces
        return
    shared = examples.packed(length) if packing == "best-fit" else examples
    assert trained_tokens(shared, own, data, "clm") == Counter(token for piece in pieces for token in piece[1:])
    ledger = examples.ledger
    assert ledger.balances()
    assert (ledger.tokens_read, ledger.tokens_truncated, ledger.tokens_dropped) == (read, truncated, dropped)
    assert sorted(examples[0, row]["input_ids"].tolist() for row in range(len(examples))) == sorted(pieces)
    assert max(len(shared[0, row]["input_ids"]) for row in range(len(shared))) <= length


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, st.integers(4, 24), st.sampled_from(["none", "best-fit", "blocks"]), st.sampled_from(POLICIES))
def test_masked_rows_hold_every_token_between_their_frames(values: list[str], length: int, packing: str, policy: str):
    """With a mask probability of almost one, every token that is not special is trained."""
    options = {"packing": packing != "none", **({"packing_strategy": packing} if packing != "none" else {})}
    own = made_once("mlm", "char")
    ids = [own(value, add_special_tokens=False)["input_ids"] for value in values]
    if packing == "blocks":  # [SEP] ends every document but the last, which the frame of its row ends
        ids = [[*document, own.sep_token_id] for document in ids[:-1]] + ids[-1:]
    pieces, read, truncated, dropped = reference(ids, ([], []), length - 2, policy, packing == "blocks")
    try:
        examples, _, data = encoded(
            "mlm",
            values,
            "text",
            max_length=length,
            on_long=policy,
            made_with="char",
            mask_probability=1 - 1e-12,
            **options,
        )
    except InputError as error:
        assert "no row is left" in str(error)
        assert not pieces
        return
    shared = examples.packed(length) if packing == "best-fit" else examples
    special = set(own.all_special_ids)
    wanted = Counter(token for piece in pieces for token in piece if token not in special)
    assert trained_tokens(shared, own, data, "mlm") == wanted
    framed = [[own.cls_token_id, *piece, own.sep_token_id] for piece in pieces]
    assert sorted(examples[0, row]["input_ids"].tolist() for row in range(len(examples))) == sorted(framed)
    ledger = examples.ledger
    assert ledger.balances()
    assert (ledger.tokens_read, ledger.tokens_truncated, ledger.tokens_dropped) == (read, truncated, dropped)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, texts, st.integers(2, 20), st.integers(2, 20), st.sampled_from(["truncate", "drop"]))
def test_targets_are_trained_up_to_their_limit_and_still_end(
    sources: list[str], targets: list[str], source_length: int, target_length: int, policy: str
):
    values = list(zip(sources, targets, strict=False))
    own = made_once("seq2seq", "byte")
    pairs = [(own(source)["input_ids"], own(target)["input_ids"]) for source, target in values]
    fits = [len(source) <= source_length and len(target) <= target_length for source, target in pairs]
    kept = [pair for pair, whole in zip(pairs, fits, strict=True) if whole or policy == "truncate"]
    cut = [
        target if len(target) <= target_length else [*target[: target_length - 1], target[-1]] for _, target in kept
    ]
    try:
        examples, _, data = encoded(
            "seq2seq",
            values,
            "pairs",
            made_with="byte",
            max_source_length=source_length,
            max_target_length=target_length,
            on_long=policy,
        )
    except InputError as error:
        assert "no row is left" in str(error)
        assert not kept
        return
    assert trained_tokens(examples, own, data, "seq2seq") == Counter(token for target in cut for token in target)
    ledger = examples.ledger
    assert ledger.balances()
    assert ledger.tokens_read == sum(len(source) + len(target) for source, target in pairs)
    assert ledger.rows_dropped == len(pairs) - len(kept)
    assert ledger.rows_truncated == (fits.count(False) if policy == "truncate" else 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(0, 8))
def test_best_fit_keeps_texts_whole_and_fills_rows(lengths: list[int], more: int):
    room = max(lengths) + more
    rows = best_fit(np.array(lengths), room)
    assert sorted(rows.values.tolist()) == list(range(len(lengths)))
    filled = [sum(lengths[text] for text in rows[row]) for row in range(len(rows))]
    assert max(filled) <= room
    assert sum(fill <= room // 2 for fill in filled) <= 1, "two rows that are at most half full would fit into one"


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
    with pytest.raises(InputError, match="in memory, line 2: 52 tokens, the limit is 10"):
        encoded("clm", ["ab", "a" * 50], "text", made_with="byte", max_length=10, packing=False, on_long="error")


def test_only_the_completion_and_its_end_are_trained():
    examples, made_tokenizer, data = encoded("clm", [("What?", "the cat"), ("Why? ", "the dog")], "prompt")
    batch = OBJECTIVES["clm"].collator(made_tokenizer, data, 1)([examples[0, 0], examples[0, 1]])
    for ids, labels, text, whole in zip(
        batch["input_ids"],
        batch["labels"],
        ("the cat</s>", "the dog</s>"),
        ("<s>What?\nthe cat</s>", "<s>Why? the dog</s>"),
        strict=True,
    ):
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
    from lmtrain.preprocessing import chat

    made_tokenizer = made("clm", "byte")
    assert (chat.ensure_template(made_tokenizer) is None) is False
    made_tokenizer.chat_template = template or made_tokenizer.chat_template
    ids, mask = chat.encode(made_tokenizer, CHAT, "row 1")
    assert made_tokenizer.decode(np.array(ids)[mask]) == trained


def test_a_chat_without_room_for_an_answer_is_dropped_and_counted():
    examples, *_ = encoded(
        "clm",
        [CHAT, CHAT[2:], [{"role": "user", "content": "x" * 99}, *CHAT[1:2]]],
        "messages",
        made_with="byte",
        max_length=60,
    )
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
    encode = OBJECTIVES["seq2seq"].encode
    examples = encode(rows_of(values, "pairs"), made("seq2seq", "byte"), data, Limits(64), False)
    assert examples.limits.resolved == {"max_source_length": 64, "max_target_length": 64}
    examples = encode(rows_of(values, "pairs"), made("seq2seq", "byte"), data, Limits(None), False)
    assert examples.limits.resolved == {"max_source_length": 101, "max_target_length": 101}  # with the end token


def test_more_than_the_positions_is_refused():
    with pytest.raises(UsageError, match=r"--max-length 65: the model has 64 positions"):
        encoded("clm", ["a"], "text", positions=64, max_length=65)


def test_bytes_of_the_tokens_add_up_to_the_text():
    values = ["the cat 가나다 🙂", "\n\n é é ", "x"]
    for kind in ("bpe:300", "byte", "char", "wordpiece:100", "unigram:80"):
        made_tokenizer = made("clm", kind)
        for value, (ids, sizes) in zip(
            values, tokenizing.ids_and_bytes(made_tokenizer, map(Piece, values)), strict=True
        ):
            assert len(ids) == len(sizes)
            assert sum(sizes) == len(value.encode()) or not ids


@pytest.mark.parametrize("objective", ["clm", "mlm", "seq2seq"])
@pytest.mark.parametrize("kind", ["bpe:300", "byte", "char", "wordpiece:200", "unigram:60"])
def test_trained_tokenizers_survive_saving_and_keep_korean(objective: str, kind: str):
    from transformers import AutoTokenizer

    made_tokenizer = train_tokenizer.train_tokenizer(
        kind, ["가나다 라마바 the cat"] * 9, OBJECTIVES[objective].special_tokens
    )
    made_tokenizer.save_pretrained("saved")
    again = AutoTokenizer.from_pretrained("saved")
    ids = again("가나다 the cat")["input_ids"]
    assert ids == made_tokenizer("가나다 the cat")["input_ids"]
    assert again.decode(ids, skip_special_tokens=True).strip() == "가나다 the cat"
    before, after = tokenizing.special_token_ids(again)
    assert [again.convert_ids_to_tokens(part) for part in (before, after)] == {
        "clm": [["<s>"], []],
        "mlm": [["[CLS]"], ["[SEP]"]],
        "seq2seq": [[], ["</s>"]],
    }[objective]


@pytest.mark.slow
def test_a_tokenizer_is_the_same_in_every_process():
    """The trainers of the tokenizers library break ties in the order of a hash table."""
    code = (
        "from lmtrain.preprocessing.train_tokenizer import train_tokenizer\n"
        "from lmtrain.objectives.objective import OBJECTIVES\nimport hashlib\n"
        "texts = ['the cat sees the dog and the king', 'a child follows the river'] * 20\n"
        "for kind in ('bpe:290', 'wordpiece:70', 'unigram:40', 'char', 'byte'):\n"
        "    made = train_tokenizer(kind, texts, OBJECTIVES['mlm'].special_tokens)\n"
        "    print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert len(outputs[0].splitlines()) == 5
    assert outputs[0] == outputs[1] == outputs[2]


# --- masks and order -------------------------------------------------------------------------------------------------


def test_masks_keep_their_shares_and_spare_special_tokens():
    examples, made_tokenizer, data = encoded("mlm", WORDS * 60, "text", max_length=64, mask_split="80/10/10")
    collator = OBJECTIVES["mlm"].collator(made_tokenizer, data, 1)
    rows = [examples[0, row] for row in range(len(examples))]
    batch = collator(rows)
    original = padded([row["input_ids"] for row in rows], made_tokenizer.pad_token_id)
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
    examples, made_tokenizer, data = encoded("mlm", [" ".join(WORDS)], "text", max_length=32)
    collator = OBJECTIVES["mlm"].collator(made_tokenizer, data, 1)

    def labels(epoch: int | None, row: int, others: int = 0) -> list[int]:
        batch = collator([examples[epoch, row], *(examples[epoch, i] for i in range(others))])
        return [label for label in batch["labels"][0].tolist() if label != -100]

    assert labels(0, 3) == labels(0, 3, others=4)
    assert labels(0, 3) != labels(1, 3)
    assert labels(None, 3) == labels(None, 3, others=2)
    assert (
        OBJECTIVES["mlm"].collator(made_tokenizer, data, 2).scored(examples[0, 3])[1].tolist()
        != collator.scored(examples[0, 3])[1].tolist()
    )


def test_a_blank_row_trains_nothing_in_any_objective():
    for objective, values, kind in (
        ("clm", WORDS, "text"),
        ("mlm", WORDS, "text"),
        ("seq2seq", [("a", "b")], "pairs"),
        ("clm", [("a", "b")], "prompt"),
    ):
        examples, made_tokenizer, data = encoded(objective, values, kind)
        collator = OBJECTIVES[objective].collator(made_tokenizer, data, 1)
        assert (collator([examples[0, len(examples)]])["labels"] == -100).all()


def test_the_ledger_of_a_run_counts_empty_and_bad_rows(material: Path):
    lines = [json.dumps({"text": text}) for text in ["a cat", "", "a dog", None, "a king"] * 4]
    Path("mixed.jsonl").write_text("\n".join(lines))
    outcome = lmtrain(
        "clm",
        "--model",
        "gpt2",
        "--from-scratch",
        "--tokenizer",
        "byte",
        "--model-config",
        "n_embd=8,n_layer=1,n_head=1",
        "--data",
        "mixed.jsonl",
        "--on-bad",
        "drop",
        "--val-split",
        0.2,
        "--max-steps",
        1,
        "--json",
        "-o",
        "run",
    )
    train, held = (outcome.json["data"][part] for part in ("train", "eval"))
    assert (train["rows_empty"], train["rows_bad"], held["rows_empty"]) == (4, 4, 0)
    assert train["rows_used"] + held["rows_used"] == 12
    assert outcome.json["data"]["shared_rows"] == held["rows_used"]
    assert "rows empty" in outcome.err
