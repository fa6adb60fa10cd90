"""Rows -> token ids, with every row and token entered in the ledger."""

from array import array
from collections.abc import Callable, Iterator, Sequence
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
from lmtrain.preprocessing.tokenizing import special_token_ids


def start_ledgers(rows: Rows) -> tuple[Ledger, ...]:
    """The ledgers of the rows' sources, with what is known before anything is tokenised."""
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
    """`origins` [rows of the columns]: which row of the data each comes from."""
    for ledger in ledgers:
        assert ledger.balances(), f"the ledger does not balance: {ledger}"
    if not len(columns["input_ids"]) and not rows.is_chunk:
        dropped = sum(ledger.rows_dropped for ledger in ledgers)
        raise InputError(f"{rows.location(0)} and after: no row is left ({dropped} dropped as too long or with nothing "
                         "to train)")  # fmt: skip
    sources = row_sources(rows, np.asarray(origins, np.int64)) if len(ledgers) > 1 else None
    fingerprint = "" if rows.is_chunk else extend_fingerprint("", rows.contents())  # a stream extends its own
    return Examples(rows.kind, columns, ledgers, limits, fingerprint, sources, **more)


class TokenizedDocuments:
    """The ids of documents, one after another, in the making; those that a stream carried over come first.

    With `flag`, a column of that name says yes or no of each of them.
    """

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, flag: str | None = None):
        self.rows, self.origins = rows, array("q")
        self.ids = GrowingRagged("H" if len(tokenizer) <= 1 << 16 else "i")
        self.columns = {"input_ids": self.ids, **({flag: GrowingRagged("b")} if flag else {})}
        self.flags = self.columns.get(flag or "")
        self.before, self.last = 0, -1  # ids of the document in the making that were carried over; where it starts
        if rows.carried and not rows.continues:
            for name, column in self.columns.items():
                column.extend(rows.carried[name])
                column.close(len(rows.carried[name]))
            self.origins.append(0)

    def continues(self, document: range) -> bool:
        """Whether a document began in the part of the stream before."""
        return self.rows.continues and document.start == 0

    def unfinished(self) -> bool:
        """Whether there are ids of the last document, which goes on."""
        return self.last == self.origins[-1]

    def begin(self, document: range, start: Sequence[int] = ()) -> None:
        """Begin a document with its first ids, which is the first thing new in it."""
        self.last = document.start
        if self.continues(document):
            for name, column in self.columns.items():
                column.extend(self.rows.carried.get(name, ()))
        self.before = self.ids.open_length
        self.ids.extend(start)

    def take(self, parts: Iterator[tuple[list[int], list[bool]]]) -> None:
        """The ids of a document with their flags."""
        assert self.flags is not None
        for ids, flags in parts:
            self.ids.extend(ids)
            self.flags.extend(flags)

    def end(self, document: range, fit: Callable[[int], int]) -> int:
        """End a document of so many new tokens, of which `fit` says how many are kept."""
        kept = fit(self.ids.open_length - self.before)
        for column in self.columns.values():
            column.close(self.before + kept)
        if self.before + kept:
            self.origins.append(document.start)
        return kept


def split_into_rows(
    texts: TokenizedDocuments,
    columns: dict[str, Ragged],
    length: int,
    ledgers: tuple[Ledger, ...],
    limits: Limits,
    blocks: bool = False,
    special: tuple[list[int], list[int]] = ([], []),
) -> Examples:
    """Cut documents every `length` tokens; with `blocks`, join those of a source before they are cut.

    `special` tokens are put before and after every piece.

    The last piece of a part of a stream is its rest, where its text goes on or where blocks are to be filled.
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
    return finish_examples(cut, ledgers, rows, origins, limits, rest=rest)


def row_sources(rows: Rows, origins: np.ndarray) -> np.ndarray:
    """Of each of some rows of the data the source that it comes from."""
    if not rows.values:  # what a stream carried over is all that there is
        return np.zeros(len(origins), np.int64)
    of_table = np.array([table.source for table in rows.tables])
    return of_table[np.asarray(rows.table_of)[origins]]


def document_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """(begin, end) marks of a document: what the tokenizer adds, and always an end token, so that stopping is learnt."""
    before, after = special_token_ids(tokenizer)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in after:
        after = [*after, tokenizer.eos_token_id]
    return before, after


def documents_of(rows: Rows, encoded: Iterator[Any]) -> Iterator[tuple[Iterator[Any], range]]:
    """(what each of its rows was `encoded` to, to be taken at once; the rows) of each document.

    Every row is tokenised on its own, and handed on before the next is: a document may be larger than memory likes.
    """
    for document in rows.documents():
        yield islice(encoded, len(document)), document


def fit_document(
    ledgers: tuple[Ledger, ...], tokens: int, length: int, rows: Rows, document: range, policy: str
) -> int:
    """How many of a document's tokens are kept under the --on-long `policy`; entered in the ledger.

    Raises UsageError where running text is to be treated as rows, InputError under the policy `error`.
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


def apply_long_policy(ledger: Ledger, tokens: int, length: int, place: str, policy: str) -> int:
    """How many of a too long row's tokens are kept; entered in the ledger. Raises InputError under `error`."""
    if policy == "error":
        raise InputError(f"{place}: {tokens} tokens, the limit is {length}; --on-long says what to do with such rows")
    if policy == "drop":
        ledger.drop(tokens)
        return 0
    ledger.use(tokens, truncated=tokens - length)
    return length
