"""TODO."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmtrain.data.ledger import Ledger
from lmtrain.data.sources import Table


class Texts(Sequence[str]):
    """Strings one after another in UTF-8: a third of the memory that Python takes for as many short ones."""

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
        """The strings from that index on that have these `ends`."""
        start = self._ends[index - 1] if index else 0
        for end in ends:
            yield self._bytes[start:end].decode("utf-8", "surrogatepass")
            start = end


@dataclass(frozen=True)
class Rows:
    """What is left of the data once its usable values are picked out.

    `values[i]` is a string (text), two strings (prompt), two or more (pairs: source, references) or a list of messages;
    it stands in table `table_of[i]` at line or row `numbers[i]`, and was the `serials[i]`-th value that was read. Rows of one
    `groups[i]` stay together when a part is held out. A table in `last` is running text: its values follow one another as
    one document, up to that serial.
    `ledgers`, one a source, count what was not usable. Of rows that are a `part` of a stream, `more` may follow, if `open`
    of the same source; and they begin with what is left over of the part before (`carried`, by column), which is the start
    of their first document if that `continues`.
    """

    kind: str
    tables: tuple[Table, ...]
    values: Sequence[Any]
    table_of: "array[int]"
    numbers: "array[int]"
    serials: Sequence[int]
    groups: "array[int]"
    last: dict[int, int]
    ledgers: tuple[Ledger, ...]
    notes: list[str] = field(default_factory=list)
    part: bool = False
    more: bool = False
    open: bool = False
    carried: Mapping[str, Sequence[int]] = field(default_factory=dict)
    continues: bool = False

    @classmethod
    def of(cls, kind: str, values: list[Any], name: str = "made up", running: bool = False) -> "Rows":
        """Rows that stand nowhere, one a line; `running`: one document."""
        numbers = array("q", range(1, len(values) + 1))
        tables = (Table(name, lambda: iter(())),)
        last = {0: len(values)} if running else {}
        return cls(kind, tables, values, array("i", [0] * len(values)), numbers, numbers, numbers, last, (Ledger(),))

    def __len__(self) -> int:
        """Rows with something in them; the pieces of one long line are one row."""
        return self.count(range(len(self.values)))

    def place(self, index: int) -> str:
        return self.tables[self.table_of[index]].place(self.numbers[index])

    def source(self, index: int) -> int:
        """Which of the `--data` arguments a row comes from."""
        return self.tables[self.table_of[index]].source

    def texts(self) -> Iterator[str]:
        """Every text of every row, for training a tokenizer."""
        for value in self.values:
            if isinstance(value, str):
                yield value
            elif isinstance(value, tuple):
                yield from value
            else:
                yield from (message["content"] for message in value)

    def has_text(self) -> bool:
        """Whether there is more than the blank lines of running text."""
        return any(value.strip() if isinstance(value, str) else value for value in self.values)

    def documents(self) -> Iterator[range]:
        """The rows of each document: one row, or an unbroken stretch of running text."""
        start = 0
        for index in range(1, len(self.values) + 1):
            if index == len(self.values) or not self._continues(index):
                yield range(start, index)
                start = index

    def ends(self, index: int) -> bool:
        """Whether a document really ends with this row, rather than before a stretch that was held out."""
        serial = self.serials[index]
        return serial == self.last.get(self.table_of[index], serial)

    def count(self, document: range) -> int:
        """Rows in a document; the pieces of one long line are one row."""
        table, numbers = self.table_of, self.numbers
        return sum(
            index == document.start or numbers[index] != numbers[index - 1] or table[index] != table[index - 1]
            for index in document
        )

    def per_source(self) -> list[int]:
        """The number of rows of each source."""
        counts = [0] * len(self.ledgers)
        before = None
        for place in zip(self.table_of, self.numbers, strict=True):
            counts[self.tables[place[0]].source] += place != before
            before = place
        return counts

    def goes_on(self) -> bool:
        """Whether the last document goes on in the part of a stream that follows."""
        return self.open and bool(self.values) and not self.ends(len(self.values) - 1)

    def _continues(self, index: int) -> bool:
        if self.table_of[index] != self.table_of[index - 1] or self.serials[index] - self.serials[index - 1] > 1:
            return False
        # The pieces of a long row have one number.
        return self.table_of[index] in self.last or self.numbers[index] == self.numbers[index - 1]

    def subset(self, indices: list[int]) -> "Rows":
        """Some of the rows; the ledgers, of what was not usable, go along."""
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
        """Every value as bytes, in order: what fingerprints are made of."""
        for value in self.values:
            yield value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()
