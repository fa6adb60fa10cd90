"""The usable rows of the data in memory, with the file and line of each."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lmtrain.data.chats import Chat
from lmtrain.data.labels import LABELLED, plain_text
from lmtrain.data.ledger import Ledger
from lmtrain.data.tables import Table


class Texts(Sequence[str]):
    """A list of strings in one UTF-8 buffer. Short strings take a third of the memory of a Python list."""

    def __init__(self, texts: Iterable[str] = ()):
        self._bytes, self._ends = bytearray(), array("q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._bytes += text.encode(errors="surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Texts) else other)

    def __iter__(self) -> Iterator[str]:
        return self._from(0, self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            index = range(len(self))[index]
            return next(self._from(index, self._ends[index : index + 1]))
        start, stop, step = index.indices(len(self))
        return (
            list(self._from(start, self._ends[start:stop]))
            if step == 1
            else [self[i] for i in range(start, stop, step)]
        )

    def _from(self, index: int, ends: Iterable[int]) -> Iterator[str]:
        """Yield the strings from `index` on; `ends` holds the end of each in the buffer."""
        start = self._ends[index - 1] if index else 0
        for end in ends:
            yield self._bytes[start:end].decode("utf-8", "surrogatepass")
            start = end


@dataclass(frozen=True)
class Rows:
    """The usable rows of a data set, or of one chunk of a stream.

    A long row is stored in several pieces, each with an index of its own and the same line number. A text file that
    is read as one document ("running text") has one value per line, or several for a long line.
    """

    kind: str
    """text, prompt, messages, pairs, labelled or tagged, see selection.py."""
    tables: tuple[Table, ...]
    values: Sequence[Any]
    """Usable values, see `Selection.value`."""
    table_of: "array[int]"
    """Index into `tables` of each value."""
    numbers: "array[int]"
    """Line or row number of each value in its table."""
    serials: Sequence[int]
    """Position of each value in reading order, from 1: gaps show where rows were held out."""
    groups: "array[int]"
    """Group of each value. Values of one group stay together when rows are held out."""
    last_serials: dict[int, int]
    """Table index -> serial of its last value, for the tables that are running text."""
    ledgers: tuple[Ledger, ...]
    """One ledger per source, with the counts of unusable rows."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What probably was not meant."""
    is_chunk: bool = False
    has_next: bool = False
    """Whether another chunk of the stream follows."""
    next_is_same_source: bool = False
    """Whether the next chunk begins with the source that this one ends with."""
    carried: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Column -> ids that the previous chunk left over; they come before the first row."""
    continues: bool = False
    """Whether `carried` is the start of the first document."""
    tail: tuple[str, int, int] | None = None
    """The text before the first row that the previous chunk left over, as a `Piece`."""

    @classmethod
    def of(cls, kind: str, values: list[Any], name: str = "in memory", running: bool = False) -> "Rows":
        """Rows from values in memory, numbered from 1. With `running` they are one document."""
        numbers = array("q", range(1, len(values) + 1))
        tables = (Table(name, lambda: iter(())),)
        last_serials = {0: len(values)} if running else {}
        return cls(
            kind, tables, values, array("i", [0] * len(values)), numbers, numbers, numbers, last_serials, (Ledger(),)
        )

    def __len__(self) -> int:
        """The number of rows; the pieces of a long row count once."""
        return self.count(range(len(self.values)))

    def location(self, index: int) -> str:
        """File and line of a value, for messages."""
        return self.tables[self.table_of[index]].location(self.numbers[index])

    def source(self, index: int) -> int:
        """Index of the `--data` argument that a value comes from."""
        return self.tables[self.table_of[index]].source

    def evaluation_sets(self) -> tuple[str, ...]:
        """Name of the evaluation set that each source belongs to; empty if they have none."""
        names = tuple(dict((table.source, table.evaluation_set) for table in self.tables).values())
        return names if any(names) else ()

    def texts(self) -> Iterator[Iterable[str]]:
        """Yield all texts, each as its parts: those of a document are its lines. Consume one before the next."""
        values = iter(self.values)
        if self.kind == "text":
            yield from (islice(values, len(document)) for document in self.documents())
            return
        if self.kind in LABELLED:
            yield from ((plain_text(content),) for content, _ in values)
            return
        for value in values:
            strings = value.texts() if isinstance(value, Chat) else value
            yield from ((string,) for string in strings)

    def has_text(self) -> bool:
        """Whether any value is not blank."""
        return any(value.strip() if isinstance(value, str) else value for value in self.values)

    def documents(self) -> Iterator[range]:
        """Yield the indices of each document: one row, or consecutive lines of running text."""
        start = 0
        for index in range(1, len(self.values) + 1):
            if index == len(self.values) or not self._continues(index):
                yield range(start, index)
                start = index

    def ends(self, index: int) -> bool:
        """Whether a document ends with this value, and not just before rows that were held out."""
        serial = self.serials[index]
        return serial == self.last_serials.get(self.table_of[index], serial)

    def count(self, document: range) -> int:
        """The number of rows that begin in a document; the pieces of a long row count once."""
        tables, numbers = self.table_of, self.numbers
        return sum(
            index == 0 or numbers[index] != numbers[index - 1] or tables[index] != tables[index - 1]
            for index in document
        )

    def per_source(self) -> list[int]:
        """The number of rows of each source."""
        counts = [0] * len(self.ledgers)
        previous = None
        for row in zip(self.table_of, self.numbers, strict=True):
            counts[self.tables[row[0]].source] += row != previous
            previous = row
        return counts

    def continues_in_next(self) -> bool:
        """Whether the last document continues in the next chunk."""
        return self.next_is_same_source and bool(self.values) and not self.ends(len(self.values) - 1)

    def _continues(self, index: int) -> bool:
        if self.table_of[index] != self.table_of[index - 1] or self.serials[index] - self.serials[index - 1] > 1:
            return False
        # The pieces of a long row share one line number.
        return self.table_of[index] in self.last_serials or self.numbers[index] == self.numbers[index - 1]

    def subset(self, indices: list[int]) -> "Rows":
        """The rows at `indices`, with the same ledgers."""
        values: Any = (self.values[i] for i in indices)
        return replace(
            self,
            values=Texts(values) if isinstance(self.values, Texts) else list(values),
            table_of=array("i", [self.table_of[i] for i in indices]),
            numbers=array("q", [self.numbers[i] for i in indices]),
            serials=array("q", [self.serials[i] for i in indices]),
            groups=array("q", [self.groups[i] for i in indices]),
        )

    def contents(self) -> Iterator[bytes]:
        """Yield each value as bytes, for fingerprints."""
        for value in self.values:
            if isinstance(value, str):
                yield value.encode()
            else:
                yield (value.to_json() if isinstance(value, Chat) else json.dumps(value, ensure_ascii=False)).encode()
