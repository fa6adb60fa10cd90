"""Convert rows to token ids. The ledger counts every row and token."""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.data.ledger import Ledger, extend_fingerprint
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, UsageError
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.ragged import GrowingRagged, Ragged
from lmtrain.preprocessing.text_pieces import LONGEST, Piece, TextCutter
from lmtrain.preprocessing.tokenizing import special_token_ids
from lmtrain.preprocessing.vocabulary import id_count

Encoder = Callable[[PreTrainedTokenizerBase, Iterable[Piece]], Iterator[Any]]
"""A function that encodes each of the pieces, such as `ids_of`."""


def start_ledgers(rows: Rows) -> tuple[Ledger, ...]:
    """One ledger per source, with the row counts that are known before tokenisation."""
    ledgers = tuple(replace(ledger) for ledger in rows.ledgers)
    for ledger, usable in zip(ledgers, rows.per_source(), strict=True):
        ledger.rows_read = usable + ledger.rows_empty + ledger.rows_bad + ledger.rows_dropped
    return ledgers


def finish_examples(
    columns: dict[str, Ragged],
    ledgers: tuple[Ledger, ...],
    rows: Rows,
    origins: Sequence[int] | np.ndarray,
    limits: Limits,
    **more: Any,
) -> Examples:
    """Examples of the columns; `origins` [rows of the columns] are indices into `rows`. Raises InputError if none is left."""
    for ledger in ledgers:
        assert ledger.balances(), f"the ledger does not balance: {ledger}"
    if not len(columns["input_ids"]) and not rows.is_chunk:
        dropped = sum(ledger.rows_dropped for ledger in ledgers)
        raise InputError(
            f"{rows.location(0)} and after: no row is left ({dropped} dropped as too long or with nothing to train)"
        )
    sources = row_sources(rows, np.asarray(origins, np.int64)) if len(ledgers) > 1 else None
    fingerprint = "" if rows.is_chunk else extend_fingerprint("", rows.contents())  # a stream extends its own
    return Examples(rows.kind, columns, ledgers, limits, fingerprint, sources, rows.evaluation_sets(), **more)


class TokenizedDocuments:
    """Encodes the documents of `rows` and collects their token ids.

    Ids that the previous chunk of a stream left over come first. With `flag`, a second column of that name holds one bool
    per token. `tail` is text at the end of a chunk whose tokens depend on the next chunk.
    """

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, flag: str | None = None):
        self.rows, self.tokenizer, self.origins = rows, tokenizer, array("q")
        self.cutter = TextCutter(tokenizer)
        self.tail: Piece | None = None
        self.ids = GrowingRagged("H" if id_count(tokenizer) <= 1 << 16 else "i")
        self.columns = {"input_ids": self.ids, **({flag: GrowingRagged("b")} if flag else {})}
        self.flags = self.columns.get(flag or "")
        self.before, self.last = 0, -1  # of the open document: the number of carried ids, and its first row
        if rows.carried and not rows.continues:
            for name, column in self.columns.items():
                column.extend(rows.carried[name])
                column.close(len(rows.carried[name]))
            self.origins.append(0)

    def encoded(self, encode: Encoder) -> Iterator[tuple[Iterator[Any], range]]:
        """Yield (what `encode` makes of its pieces, the range of its rows) for each document.

        A document is encoded as one text, whatever rows hold it. Consume the pieces of one before the next.
        """
        ends: deque[bool] = deque()
        encoded = encode(self.tokenizer, self._pieces(ends))

        def pieces() -> Iterator[Any]:
            for piece in encoded:
                yield piece
                if ends.popleft():
                    return

        for document in self.rows.documents():
            yield pieces(), document

    def _pieces(self, ends: "deque[bool]") -> Iterator[Piece]:
        """Yield the pieces of all documents. `ends` receives for each whether it ends its document."""
        cutter, values = self.cutter, iter(self.rows.values)
        for document in self.rows.documents():
            start = Piece(*self.rows.tail) if self.rows.tail and self.continues(document) else None
            pieces = cutter.pieces(islice(values, len(document)), start)
            last: Piece | None = next(pieces)
            for piece in pieces:
                ends.append(False)
                assert last
                yield last
                last = piece
            if document.stop == len(self.rows.values) and self.rows.continues_in_next():
                assert last
                last, self.tail = cutter.hold_back(last)
            if last:
                ends.append(True)
                yield last

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell about cuts where the tokens may differ from those of the whole text."""
        count = self.cutter.forced
        where = "1 place" if count == 1 else f"{count:,} places"
        message = (
            f"a text of more than {LONGEST:,} characters is cut at {where} where its tokens may differ from those of the "
            "whole text, since the tokenizer leaves no other; --sample-by line makes documents of the lines"
        )
        return (message,) if count else ()

    def continues(self, document: range) -> bool:
        """Whether a document began in the previous chunk of the stream."""
        return self.rows.continues and document.start == 0

    def unfinished(self) -> bool:
        """Whether the last document has ids and continues in the next chunk."""
        return self.last == self.origins[-1]

    def begin(self, document: range, start: Sequence[int] = ()) -> None:
        """Begin a document. The ids in `start` count as new, carried ids don't."""
        self.last = document.start
        if self.continues(document):
            for name, column in self.columns.items():
                column.extend(self.rows.carried.get(name, ()))
        self.before = self.ids.open_length
        self.ids.extend(start)

    def take(self, parts: Iterator[tuple[list[int], list[bool]]]) -> None:
        """Append ids and flags to the open document."""
        assert self.flags is not None
        for ids, flags in parts:
            self.ids.extend(ids)
            self.flags.extend(flags)

    @property
    def new_tokens(self) -> int:
        """Tokens of the open document, without those carried over."""
        return self.ids.open_length - self.before

    def end(self, document: range, kept: int) -> None:
        """End a document and keep the first `kept` of its new tokens."""
        for column in self.columns.values():
            column.close(self.before + kept)
        if self.before + kept:
            self.origins.append(document.start)


def split_into_rows(
    texts: TokenizedDocuments,
    columns: dict[str, Ragged],
    length: int,
    ledgers: tuple[Ledger, ...],
    limits: Limits,
    blocks: bool = False,
    special: tuple[list[int], list[int]] = ([], []),
) -> Examples:
    """Cut documents every `length` tokens; with `blocks`, concatenate those of each source first.

    Every piece is put between the `special` tokens (begin, end). In a stream, the last piece of a chunk is carried into
    the next chunk if its document continues there or its block is not full.
    """
    rows, ids, origins = texts.rows, columns["input_ids"], np.array(texts.origins, np.int64)
    if blocks:
        sources = row_sources(rows, origins)
        first = np.flatnonzero(np.diff(sources, prepend=-1))
        columns = {name: column.joined(first) for name, column in columns.items()}
        ids, origins = columns["input_ids"], origins[first]
    origins = np.repeat(origins, ids.pieces(length))
    cut = {name: column.split(length) for name, column in columns.items()}
    rest: dict[str, list[int]] = {}
    if len(origins) and (rows.next_is_same_source if blocks else rows.continues_in_next() and texts.unfinished()):
        rest = {name: column[len(origins) - 1].tolist() for name, column in cut.items()}
        origins = origins[:-1]
        cut = {name: column.first(len(origins)) for name, column in cut.items()}
    if any(special):
        around = {"input_ids": special} | {
            name: ([1] * len(special[0]), [1] * len(special[1])) for name in cut if name != "input_ids"
        }
        cut = {name: column.wrapped(*around[name]) for name, column in cut.items()}
    return finish_examples(cut, ledgers, rows, origins, limits, rest=rest, tail=texts.tail, warnings=texts.warnings)


def row_sources(rows: Rows, origins: np.ndarray) -> np.ndarray:
    """Source index of each row in `origins`."""
    if not rows.values:  # the chunk holds only what was carried over
        return np.zeros(len(origins), np.int64)
    of_table = np.array([table.source for table in rows.tables])
    return of_table[np.asarray(rows.table_of)[origins]]


def document_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens (begin, end) of a document. There is always an end token, so that the model learns to stop."""
    before, after = special_token_ids(tokenizer)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in after:
        after = [*after, tokenizer.eos_token_id]
    return before, after


def fit_document(
    ledgers: tuple[Ledger, ...], tokens: int, length: int, rows: Rows, document: range, policy: str
) -> int:
    """Number of the document's tokens to keep under the --on-long `policy`. Updates the ledger.

    Raises UsageError if the policy applies to rows but the document is running text, InputError under `error`.
    """
    ledger = ledgers[rows.source(document.start)]
    if rows.table_of[document.start] in rows.last_serials and policy != "split":
        raise UsageError(
            f"--on-long {policy} is for rows; a running text has none (--sample-by line makes its lines rows)"
        )
    if tokens <= length or policy == "split":
        ledger.use(tokens, rows=rows.count(document))
        return tokens
    return apply_long_policy(ledger, tokens, length, rows.location(document[0]), policy)


def apply_long_policy(ledger: Ledger, tokens: int, length: int, location: str, policy: str) -> int:
    """Number of tokens to keep of a row that is too long. Updates the ledger. Raises InputError under `error`."""
    if policy == "error":
        raise InputError(
            f"{location}: {tokens} tokens, the limit is {length}; --on-long says what to do with such rows"
        )
    if policy == "drop":
        ledger.drop(tokens)
        return 0
    ledger.use(tokens, truncated=tokens - length)
    return length
