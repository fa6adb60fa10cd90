"""What became of every row and token, and the proof that nothing disappeared."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any


@dataclass
class Ledger:
    """Counts for one data set, or for one of its sources.

    rows_read = rows_used + rows_empty + rows_bad + rows_dropped, and
    tokens_read = tokens_used + tokens_truncated + tokens_dropped.
    A truncated row is a used row. Tokens are those of the text with its begin and end marks; the frame that a
    masked model wants around every block ([CLS] … [SEP]) is not counted. tokens_trained are the tokens whose
    prediction enters the loss in one epoch (the first, where masks are drawn anew). `fingerprint` is that of all
    usable rows in order, see `chained`.
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
    padding_fraction: float = 0.0
    fingerprint: str = ""

    def use(self, tokens: int, truncated: int = 0, rows: int = 1) -> None:
        """A row, or a document of several, of `tokens` tokens, of which `truncated` are cut off."""
        self.rows_used += rows
        self.rows_truncated += truncated > 0
        self.tokens_read += tokens
        self.tokens_truncated += truncated
        self.tokens_used += tokens - truncated

    def drop(self, tokens: int) -> None:
        self.rows_dropped += 1
        self.tokens_read += tokens
        self.tokens_dropped += tokens

    def balances(self) -> bool:
        return (
            self.rows_read == self.rows_used + self.rows_empty + self.rows_bad + self.rows_dropped
            and self.tokens_read == self.tokens_used + self.tokens_truncated + self.tokens_dropped
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)


COUNTS = tuple(field.name for field in fields(Ledger) if field.type is int)


def total(ledgers: Iterable[Ledger], fingerprint: str = "") -> Ledger:
    """The sum of several ledgers. The padding is not summed up: it is a matter of batches, see batching.py."""
    ledgers = list(ledgers)
    return Ledger(**{name: sum(vars(ledger)[name] for ledger in ledgers) for name in COUNTS}, fingerprint=fingerprint)


def chained(before: str, texts: Iterable[bytes]) -> str:
    """The fingerprint of rows that follow those of the fingerprint `before` (empty: the first ones), in hexadecimal.

    sha256 of (fingerprint so far, row), row by row: what has been read of a stream can be stored in 32 bytes and gone on
    with, and the fingerprint of a stream is that of the same rows in memory.
    """
    digest = bytes.fromhex(before)
    for text in texts:
        digest = sha256(digest + text).digest()
    return digest.hex()
