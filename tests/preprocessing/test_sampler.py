"""Batches of rows: every row once per epoch, little padding, the same number of batches in every epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.ledger import Ledger
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.sampler import BatchSampler, EpochOrder, evenly, longest_first, padding_fraction


def pairs(sources: list[int], targets: list[int], of: list[int] | None = None) -> Examples:
    columns = {"input_ids": Ragged.of([[1] * n for n in sources]), "labels": Ragged.of([[1] * n for n in targets])}
    return Examples("pairs", columns, (Ledger(),), Limits(None), sources=None if of is None else np.array(of))


def rows_of(batches: BatchSampler, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return [[row for _, row, *_ in batch] for batch in batches]


lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(
    lengths,
    st.sampled_from(
        [
            {"size": 4},
            {"size": 4, "alike": True},
            {"size": 4, "tokens": 120},
            {"size": 4, "tokens": 120, "width": 64},
            {"size": 4, "tokens": 9, "width": 64},
        ]
    ),
    st.integers(1, 3),
)
def test_every_row_comes_once_per_epoch_for_all_batch_options(sizes: list, options: dict, processes: int):
    examples = pairs(*map(list, zip(*sizes, strict=True)))
    shares = [BatchSampler(examples, 1, process=(number, processes), **options) for number in range(processes)]
    for epoch in range(3):
        own = [rows_of(share, epoch) for share in shares]
        assert len({len(batches) for batches in own} | {len(shares[0])}) == 1, "processes and epochs keep step"
        rows = Counter(row for batches in own for batch in batches for row in batch)
        blank = rows.pop(len(sizes), 0)
        assert rows == Counter(range(len(sizes)))
        assert blank < processes


def test_the_order_depends_on_epoch_and_seed_alone():
    examples = pairs([5] * 50, [5] * 50)
    for options in ({}, {"alike": True}, {"tokens": 40}, {"tokens": 40, "width": 512}):
        batches = BatchSampler(examples, 1, 4, **options)
        assert rows_of(batches, 0) != rows_of(batches, 1)
        assert rows_of(batches, 0) == rows_of(BatchSampler(examples, 1, 4, **options), 0)
        assert rows_of(batches, 0) != rows_of(BatchSampler(examples, 2, 4, **options), 0)


def test_length_grouped_batches_have_little_padding_and_about_the_requested_tokens():
    random = np.random.default_rng(0)
    sources = random.integers(5, 40, 6000)
    examples = pairs(sources.tolist(), np.maximum(sources + random.integers(-3, 4, 6000), 1).tolist())
    by_chance, alike, by_tokens = (
        BatchSampler(examples, 1, 32, **options) for options in ({}, {"alike": True}, {"tokens": 1500})
    )
    assert by_chance.padding_fraction() > 0.35
    assert alike.padding_fraction() < 0.1
    assert by_tokens.padding_fraction() < 0.05
    columns = examples.lengths_by_column()
    padded = [sum(int(column[batch].max()) for column in columns) * len(batch) for batch in by_tokens.of(0)]
    assert np.quantile(padded, 0.95) < 1500 * 1.1
    assert np.mean(padded) > 1500 * 0.9


def test_padding_free_batches_are_drawn_at_random_and_hardly_padded():
    random = np.random.default_rng(0)
    sources = random.integers(5, 40, 6000)
    examples = pairs(sources.tolist(), np.maximum(sources + random.integers(-3, 4, 6000), 1).tolist())
    whole = examples.lengths
    by_tokens = BatchSampler(examples, 1, 32, tokens=800, width=512)
    assert by_tokens.padding_fraction() == 0, "each batch is one row"
    sums = [whole[batch].sum() for batch in by_tokens.of(0)]
    assert min(sums) > 800 * 0.85 and max(sums) < 800 * 1.15
    spread = np.mean([whole[batch].std() for batch in by_tokens.of(0)])
    assert spread > 0.9 * whole.std(), "long and short pairs share a batch"
    assert BatchSampler(examples, 1, 32, tokens=4000, width=512).padding_fraction() < 0.05
    alike = BatchSampler(examples, 1, 32, tokens=800, width=512, alike=True)
    spread = [np.mean([np.ptp(b.lengths[0][batch]) for batch in b.of(0)]) for b in (alike, by_tokens)]
    assert spread[0] < 0.5 * spread[1], "grouping by length groups by length"
    largest = [row for _, row in by_tokens.largest()]
    assert whole[largest].sum() == max(sums)


def test_a_row_longer_than_batch_tokens_is_a_batch_of_its_own():
    batches = BatchSampler(pairs([500, 3, 3, 3], [1, 1, 1, 1]), 1, 8, tokens=16)
    assert [0] in rows_of(batches, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.data())
def test_rows_are_divided_evenly_into_any_number_of_batches(column: list[int], data: st.DataObject):
    count = data.draw(st.integers(1, len(column)))
    batches = evenly([np.array(sorted(column, reverse=True))], np.arange(len(column)), count)
    assert len(batches) == count
    assert all(map(len, batches))
    assert np.concatenate(batches).tolist() == list(range(len(column)))


def test_weights_divide_an_epoch_and_no_row_repeats_before_all_rows_came():
    of = np.array([0] * 90 + [1] * 10)
    order = EpochOrder(of, 1, (1.0, 1.0))
    assert order.shares() == {0: 50, 1: 50}
    epochs = [order.of(epoch) for epoch in range(4)]
    for rows in epochs:
        assert np.bincount(of[rows]).tolist() == [50, 50]
    first = Counter(np.concatenate(epochs).tolist())
    assert {first[row] for row in range(90)} <= {2, 3}, "200 draws from 90 rows"
    assert {first[row] for row in range(90, 100)} == {20}


def test_evaluation_batches_hold_more_rows_where_rows_are_short():
    lengths = np.array([10, 2, 2, 2, 2, 2, 9, 1])
    batches = longest_first(lengths, 2)
    assert [batch.tolist() for batch in batches] == [[0, 6], [1, 2, 3, 4, 5, 7]]
    assert padding_fraction([lengths], batches) == pytest.approx(1 - 30 / 32)
