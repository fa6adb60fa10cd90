"""Tagged sentences from text files: a word and its tag in a line, a blank line between sentences.

The columns of two words a line, CoNLL-2003, CoNLL-U and numbered words are known; others are refused, because a wrong
column gives figures that look right.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from lmtrain.data.columns import BadRow, Entry
from lmtrain.errors import InputError, visible

SAMPLE = 1000
"""Lines that show the layout."""

ENTITY = re.compile(r"[BIOESLU]|[BIESLU]-\S+|\S+[-_][BIESLU]")
"""Tags of entities or chunks."""
NUMBER = re.compile(r"\d+([-.]\d+)?")
"""What numbers a word: 1; in CoNLL-U also 1-2 for what is written as one, and 1.1 for what is not written."""

RANGES = "{count} ranges (1-2) and empty nodes (1.1) are left out; the words of the ranges are read"
BLANKS = "{count} blank words are left out, because they have no token"
REMEDY = "give a file of two columns, the word and its tag"


@dataclass(frozen=True)
class Layout:
    """Where the words and the tags are."""

    tabs: bool
    """Whether tabs separate the columns, so that a word may be or contain a space; otherwise any white space does."""
    width: int = 2
    """Number of columns."""
    word: int = 0
    tag: int = 1
    numbered: bool = False
    """Whether the first column numbers the words."""
    remark: str = ""
    """What to say about it."""

    def cells(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split("\t") if self.tabs else line.split()

    def is_comment(self, line: str) -> bool:
        """Whether a line at the beginning of a sentence is about it: `# text = …` of CoNLL-U, `## id` of KLUE."""
        cells = self.cells(line)
        return line.startswith("#") and (len(cells) != self.width or " " in cells[0])


def sentences(lines: Iterator[tuple[int, Entry]], name: str, counts: Counter[str]) -> Iterator[tuple[int, Entry]]:
    """Yield (number of the first line, words and tags) of each sentence. `counts` counts what is to be said (remarks.py).

    A sentence with a line that cannot be read is bad. Raises InputError where the columns are not known.
    """
    sample = list(islice(lines, SAMPLE))
    layout = _layout([entry["text"] for _, entry in sample if not isinstance(entry, BadRow)], name)
    if layout.remark:
        counts[layout.remark] += 1
    words: list[str] = []
    tags: list[str] = []
    problem: BadRow | None = None
    start = 1
    for number, entry in chain(sample, lines, [(0, {"text": ""})]):
        line = "" if isinstance(entry, BadRow) else entry["text"]
        if not isinstance(entry, BadRow) and (not line.strip() or line.startswith("-DOCSTART-")):
            if problem:
                yield start, problem
            elif words:
                yield start, {"tokens": words, "tags": tags}
            words, tags, problem = [], [], None
            continue
        if problem or (not words and not isinstance(entry, BadRow) and layout.is_comment(line)):
            continue
        found = entry if isinstance(entry, BadRow) else _word(line, layout, counts)
        if isinstance(found, BadRow):
            start, problem = number, found
        elif found:
            start = start if words else number
            words.append(found[0])
            tags.append(found[1])


def _word(line: str, layout: Layout, counts: Counter[str]) -> tuple[str, str] | BadRow | None:
    """(word, tag) of a line; None where it is left out."""
    cells = layout.cells(line)
    if len(cells) == 1:
        return BadRow(f"'{visible(line.strip())}' is a word without a tag")
    if len(cells) != layout.width:
        return BadRow(f"'{visible(line.strip())}' has {len(cells)} columns, but the lines before have {layout.width}")
    if layout.numbered and not cells[0].isdigit():
        counts[RANGES] += 1
        return None
    word, tag = cells[layout.word], cells[layout.tag].strip()
    if not word or not tag:
        return BadRow(f"'{visible(line.strip())}' is a {'word without a tag' if word else 'tag without a word'}")
    if not word.strip():
        counts[BLANKS] += 1
        return None
    return word.strip(), tag


# --- the layout ------------------------------------------------------------------------------------------------------


def is_tagged(lines: list[str]) -> bool:
    """Whether the lines of a .tsv file are tagged words rather than a table: sentences with blank lines between them."""
    written = [line for line in lines if line.strip() and not line.startswith(("# ", "## "))]
    blank = any(not line.strip() for line in lines[: max(len(lines) - 2, 0)])
    cells = [Layout(tabs=True).cells(line) for line in written]
    words = (ENTITY.fullmatch(row[-1]) if row[1:] and not row[2:] else NUMBER.fullmatch(row[0]) for row in cells)
    return blank and bool(cells) and all(words)


def _layout(lines: list[str], name: str) -> Layout:
    """The layout that the first lines show. Raises InputError."""
    named = next((line.partition("=")[2].split() for line in lines if line.startswith("# global.columns =")), [])
    if {"FORM", "UPOS"} <= set(named):  # CoNLL-U Plus
        return _numbered(True, len(named), named.index("FORM"), named.index("UPOS"), "CoNLL-U Plus")
    numbers = [
        number for number, line in enumerate(lines, 1) if line.strip() and not line.startswith(("#", "-DOCSTART-"))
    ]
    written = [lines[number - 1] for number in numbers]
    tabs = sum("\t" in line.strip() for line in written) * 2 > len(written)
    rows = [Layout(tabs).cells(line) for line in written]
    if not rows:
        return Layout(tabs)
    width = Counter(map(len, rows)).most_common(1)[0][0]
    columns = list(zip(*(row for row in rows if len(row) == width), strict=True))
    if width == 1:
        raise InputError(
            f"{name}, line {numbers[0]}: '{visible(written[0].strip())}' is a word without a tag; in the CoNLL format "
            "every line is a word and its tag, and a blank line ends a sentence"
        )
    if all(map(NUMBER.fullmatch, columns[0])):
        return _of_numbered_words(columns, tabs, name)
    return _of_words(columns, tabs, name)


def _of_words(columns: list[tuple[str, ...]], tabs: bool, name: str) -> Layout:
    """The layout of lines that begin with a word. Raises InputError."""
    width = len(columns)
    entities = all(map(ENTITY.fullmatch, columns[-1]))
    distinct = [len(set(column)) for column in columns]
    if width > 2 and (width > 5 or not entities or distinct[1] > distinct[0]):
        last = f"the last holds no tags such as B-PER and O, but e.g. '{visible(columns[-1][0])}'"
        why = "it is not known which hold the words and the tags" if entities else last
        raise InputError(f"{name}: has {width} columns, and {why}; {REMEDY}")
    if width == 2 and all(map(ENTITY.fullmatch, columns[0])) and not entities:
        raise InputError(f"{name}: its first column looks like tags, e.g. '{visible(columns[0][0])}'; {REMEDY}")
    remark = f"has {width} columns; the words are read from the first, the tags from the last" if width > 2 else ""
    return Layout(tabs, width, 0, width - 1, remark=remark)


def _of_numbered_words(columns: list[tuple[str, ...]], tabs: bool, name: str) -> Layout:
    """The layout of lines that begin with a number: CoNLL-U, or number, word and tag. Raises InputError."""
    if len(columns) == 10:
        if set(columns[3]) == {"_"}:
            raise InputError(f"{name}: is CoNLL-U, but its fourth column, UPOS, is empty; {REMEDY}")
        return _numbered(tabs, 10, 1, 3, "CoNLL-U")
    if len(columns) == 3 and len(set(columns[2])) <= len(set(columns[1])):
        return _numbered(tabs, 3, 1, 2, "numbered words")
    raise InputError(
        f"{name}: has {len(columns)} columns, of which the first numbers the words, and it is not known which of the others "
        f"holds the tags; {REMEDY}"
    )


def _numbered(tabs: bool, width: int, word: int, tag: int, what: str) -> Layout:
    remark = f"is read as {what}: the words from column {word + 1}, the tags from column {tag + 1}"
    return Layout(tabs, width, word, tag, numbered=True, remark=remark)
