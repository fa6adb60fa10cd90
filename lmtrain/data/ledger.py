"""Counts of rows and tokens used, truncated and dropped, which add up to what was read."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any


@dataclass
class Ledger:
    """Row and token counts of one data set, or of one of its sources.

    rows_read = rows_used + rows_empty + rows_bad + rows_dropped, and
    tokens_read = tokens_used + tokens_truncated + tokens_dropped.
    Truncated rows count as used. Begin and end tokens of a text are counted; the special tokens that a masked model
    puts around every block ([CLS] … [SEP]) are not. `tokens_trained` is the number of tokens whose prediction enters
    the loss in one epoch (the first epoch, where masks change), `tokens_unknown` that of the tokens used that are the
    unknown token. `fingerprint` covers all usable rows in order, see
    `extend_fingerprint`.
    """

    rows_read: int = 0
    rows_empty: int = 0
    rows_bad: int = 0
    rows_dropped: int = 0
    rows_truncated: int = 0
    rows_used: int = 0
    tokens_read: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    tokens_used: int = 0
    tokens_trained: int = 0
    tokens_unknown: int = 0
    padding_fraction: float = 0.0
    fingerprint: str = ""

    def use(self, tokens: int, truncated: int = 0, rows: int = 1) -> None:
        """Count one row, or a document of several `rows`, of `tokens` tokens, of which `truncated` are cut off."""
        self.rows_used += rows
        self.rows_truncated += truncated > 0
        self.tokens_read += tokens
        self.tokens_truncated += truncated
        self.tokens_used += tokens - truncated

    def drop(self, tokens: int) -> None:
        """Count one row of `tokens` tokens that is left out."""
        self.rows_dropped += 1
        self.tokens_read += tokens
        self.tokens_dropped += tokens

    def balances(self) -> bool:
        """Whether the counts add up."""
        return (
            self.rows_read == self.rows_used + self.rows_empty + self.rows_bad + self.rows_dropped
            and self.tokens_read == self.tokens_used + self.tokens_truncated + self.tokens_dropped
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)


COUNTS = tuple(field.name for field in fields(Ledger) if field.type is int)


def total(ledgers: Iterable[Ledger], fingerprint: str = "") -> Ledger:
    """The sum of several ledgers, without the padding, which depends on the batches (see BatchSampler)."""
    ledgers = list(ledgers)
    return Ledger(**{name: sum(vars(ledger)[name] for ledger in ledgers) for name in COUNTS}, fingerprint=fingerprint)


def extend_fingerprint(fingerprint: str, rows: Iterable[bytes]) -> str:
    """The fingerprint of all rows so far, in hexadecimal: sha256(fingerprint + row), row by row.

    `fingerprint` is that of the rows before, or empty. A stream stores it in 32 bytes and extends it when it resumes,
    and it equals the fingerprint of the same rows in memory.
    """
    digest = bytes.fromhex(fingerprint)
    for row in rows:
        digest = sha256(digest + row).digest()
    return digest.hex()
