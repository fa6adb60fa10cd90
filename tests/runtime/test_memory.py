"""Memory: work is retried in halves when a device runs out of it."""

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch

from lmtrain.runtime.memory import in_halves


def test_results_keep_their_order_when_the_work_is_halved():
    sizes = []

    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("no room")
        return [10 * item for item in items]

    assert in_halves([1, 2, 3, 4, 5], work) == [10, 20, 30, 40, 50]
    assert sizes == [5, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("items", "error"), [([1], torch.OutOfMemoryError), ([1, 2], ValueError), ([1, 2], RuntimeError)]
)
def test_other_errors_and_a_single_item_are_not_retried(items: list[int], error: type[Exception]):
    calls = []

    def work(items: Sequence[int]) -> list[int]:
        calls.append(items)
        raise error("reason")

    with pytest.raises(error, match="reason"):
        in_halves(items, work)
    assert calls == [items]


class Large:
    """A stand-in for a tensor."""


def test_memory_of_the_failed_work_is_freed_before_the_retry():
    held: list[weakref.ref[Large]] = []
    alive = []

    def work(items: Sequence[int]) -> Sequence[int]:
        gc.disable()
        alive.append(sum(reference() is not None for reference in held))
        large = Large()
        held.append(weakref.ref(large))
        if len(items) > 1:
            raise torch.OutOfMemoryError("no room")
        return items

    try:
        assert in_halves([1, 2], work) == [1, 2]
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
