"""Documents that share rows, found in an attention mask, so that attention computes each by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

SPARSE = 0.25
"""Documents are computed one by one if that needs at most this share of all query-key pairs."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of documents are: packed into shared rows, and unpacked into one padded row per document."""

    shape: tuple[int, int]
    """[documents, longest]"""
    packed: torch.Tensor
    """[documents * longest] index of each unpacked slot's token among the packed ones; of padding, of any token of the same
    document."""
    unpacked: torch.Tensor
    """[rows * length] index of each packed token among the unpacked slots."""
    filled: torch.Tensor
    """[documents * longest, 1, 1] 1 where a slot holds a token, 0 where it holds padding."""

    @classmethod
    def of(cls, starts: torch.Tensor, lengths: torch.Tensor, tokens: int) -> "Layout":
        """`starts` and `lengths` [documents] among `tokens` packed tokens, in order."""
        whole = bool(lengths.sum() == tokens)
        within = torch.arange(int(lengths.max()) + (not whole))
        filled = within < lengths[:, None]
        packed = torch.minimum(starts[:, None] + within, (starts + lengths - 1)[:, None]).flatten()
        filled = filled.flatten()
        # A token of no document takes its gradient from padding: from the last slot of the first document.
        unpacked = torch.full((tokens,), len(within) - 1)
        unpacked[packed[filled]] = filled.nonzero()[:, 0]
        return cls((len(starts), len(within)), packed, unpacked, filled[:, None, None].float())

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, heads, length, width] -> [documents, heads, longest, width]"""
        tokens = states.transpose(1, 2).flatten(0, 1)
        return _gather(tokens, self.packed, self.unpacked, None).view(*self.shape, *tokens.shape[1:]).transpose(1, 2)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """[documents, longest, heads, width] -> [rows * length, heads, width]"""
        return _gather(states.flatten(0, 1), self.unpacked, self.packed, self.filled)


@dataclass(frozen=True)
class Documents:
    """Documents that share rows, each of which attends to its own contiguous keys."""

    rows: int
    queries: Layout
    keys: Layout
    mask: torch.Tensor
    """[documents, 1, longest, longest] true where a query attends to a key."""


@lru_cache(maxsize=4)
def find_documents(mask: torch.Tensor) -> Documents | None:
    """The documents of `mask` [rows, 1, queries, keys]; None for other masks, and where few pairs would be spared.

    Cached, because every layer of a model passes the same mask.
    """
    if mask.dtype != torch.bool or mask.shape[1] != 1 or mask.shape[2] == 1:
        return None
    rows, _, queries, keys = mask.shape
    seen = mask[:, 0].to(torch.uint8)
    first, last = seen.argmax(2), keys - 1 - seen.flip(2).argmax(2)
    new = torch.ones_like(first, dtype=torch.bool)
    new[:, 1:] = first[:, 1:] != first[:, :-1]
    new = new.flatten()
    starts, document = new.nonzero()[:, 0], new.cumsum(0) - 1
    ends = torch.zeros_like(starts).scatter_reduce(
        0, document, (last + keys * torch.arange(rows)[:, None]).flatten(), "amax"
    )
    key_starts = first.flatten()[starts] + keys * (starts // queries)
    lengths, key_lengths = torch.diff(starts, append=torch.tensor([rows * queries])), ends - key_starts + 1
    pairs = len(starts) * int(lengths.max()) * int(key_lengths.max())
    if pairs > SPARSE * mask.numel() or (key_starts[1:] <= ends[:-1]).any():
        return None
    of_queries, of_keys = Layout.of(starts, lengths, rows * queries), Layout.of(key_starts, key_lengths, rows * keys)
    query_at = of_queries.packed.view(of_queries.shape)[:, :, None]
    key_at = of_keys.packed.view(of_keys.shape)[:, None, :]
    inside = mask[query_at // queries, 0, query_at % queries, key_at % keys]
    inside &= of_keys.filled.view(of_keys.shape)[:, None, :] > 0
    return Documents(rows, of_queries, of_keys, inside[:, None])


class _Gather(torch.autograd.Function):
    """Rows at an index, with a gradient that is a gather by the inverse index rather than a slow scatter."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor, filled: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.inverse, ctx.filled = inverse, filled
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gathered = outer.index_select(0, ctx.inverse)
        return gathered if ctx.filled is None else gathered.mul_(ctx.filled.to(gathered.dtype)), None, None, None


_gather: Callable[..., torch.Tensor] = _Gather.apply
