"""Batches of rows with labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lmtrain.preprocessing.batch import Batch, Row, padded, padded_batch

NOT_IN_CONTEXT = -1
"""In the column `begins` of a question: the token is none of the context."""


@dataclass(frozen=True)
class LabelCollator:
    """Texts with a label each, with several, or with one for each token."""

    pad: int
    words: bool
    """Whether labels are those of tokens, so that they are padded as these are."""
    length: int | None = None
    """Tokens that every row is padded to; None: as long as the longest of its batch."""

    @property
    def fixed(self) -> bool:
        return self.length is not None

    def padded_to(self, lengths: Mapping[str, int]) -> LabelCollator:
        return replace(self, length=lengths["max_length"])

    def __call__(self, rows: list[Row]) -> Batch:
        target = self.length if self.words else None
        batch = padded_batch(rows, [self.scored(row) for row in rows], self.pad, self.length, target)
        if any("token_type_ids" in row for row in rows):
            # A blank row, which fills up the last batches, has none.
            types = [row.get("token_type_ids", np.zeros(len(row["input_ids"]), np.int64)) for row in rows]
            batch["token_type_ids"] = padded(types, 0, self.length)
        if any("begins" in row for row in rows):
            context = [row.get("begins", np.full(1, NOT_IN_CONTEXT)) != NOT_IN_CONTEXT for row in rows]
            batch["in_context"] = padded([own.astype(np.int64) for own in context], 0, self.length)
        return batch

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        return row["input_ids"], row["labels"]
