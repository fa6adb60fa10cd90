"""Two files whose lines are translations of each other, STEM.de and STEM.en, as one table."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from glob import escape
from itertools import zip_longest
from pathlib import Path
from typing import IO

from lmtrain.config.data import PairData, Split
from lmtrain.data.columns import BadRow, Entry, spellings
from lmtrain.data.readers.contents import COMPRESSIONS
from lmtrain.data.readers.text_files import Numbered, decoded, guarded, printable, undecodable
from lmtrain.errors import InputError, visible

INSIDE = "lines with a carriage return inside, which stays there: {count}"


def sides(data: Split) -> tuple[list[str], list[str]] | None:
    """For the source and the target, what may follow STEM in a file's name: the column if it is named, else the language."""
    if not isinstance(data, PairData):
        return None
    source = [data.source_column] if data.source_column else spellings(data.source_lang)
    target = [data.target_column] if data.target_column else spellings(data.target_lang)
    return (source, target) if source and target else None


def find(stem: str, endings: tuple[list[str], list[str]]) -> list[Path]:
    """The files STEM.de and STEM.en, compressed or not; empty where neither exists. Raises InputError for one
    alone, and for one that would serve as both.
    """
    found = [_file(stem, names) for names in endings]
    files = [file for file in found if file]
    if len(files) == 1:
        raise InputError(f"{stem}.{endings[found.index(None)][0]}: no such file, but {files[0]} exists")
    if files and files[0] == files[1] and endings[0] != endings[1]:
        raise InputError(
            f"{files[0]}: fits {endings[0][0]} and {endings[1][0]}; name what follows {stem}. with --source-column and "
            "--target-column"
        )
    return files


def _file(stem: str, endings: list[str]) -> Path | None:
    paths = (Path(f"{stem}.{ending}{end}") for ending in endings for end in ("", *COMPRESSIONS))
    return next((path for path in paths if path.is_file()), None)


def others(stem: str, data: Split) -> str:
    """The files that STEM may stand for, and how to name them, as a part of a message; the empty string if there are none."""
    path = Path(stem)
    if not isinstance(data, PairData) or not path.name or not path.parent.is_dir():
        return ""
    files = sorted(file.name for file in path.parent.glob(f"{escape(path.name)}.*") if file.is_file())
    sought = " and ".join(f"{path.name}.{names[0]}" for names in sides(data) or ())
    if not files:
        return f", nor {visible(sought, 200)}" if sought else ""
    return (
        f"{f', nor {visible(sought, 200)}' if sought else ''}, but {', '.join(map(visible, files[:4]))}; --source-column en "
        f"--target-column ko would name the files {visible(path.name)}.en and {visible(path.name)}.ko"
    )


def read_parallel(
    paths: list[Path], names: tuple[str, str], encoding: str | None, counts: list[Counter[str]]
) -> Numbered:
    """Read both files line by line. Raises InputError for different lengths."""
    files = [
        guarded(partial(_read_lines, counts=count), path, encoding) for path, count in zip(paths, counts, strict=True)
    ]
    for lines in zip_longest(*files):
        if None in lines:
            number = next(line for line in lines if line)[0]
            lengths = [number - (line is None) + sum(1 for _ in file) for line, file in zip(lines, files, strict=True)]
            raise InputError(
                f"{printable(paths[0])} and {printable(paths[1])}: {lengths[0]} vs {lengths[1]} lines; the lines of both "
                "must correspond"
            )
        yield lines[0][0], _pair(paths, names, [entry for _, entry in lines])


def _pair(paths: list[Path], names: tuple[str, str], entries: list[Entry]) -> Entry:
    record = {}
    for path, name, entry in zip(paths, names, entries, strict=True):
        if isinstance(entry, BadRow):
            return BadRow(f"{printable(path)}: {entry}")
        record[name] = entry["text"]
    return record


def _read_lines(opener: Callable[[], IO[bytes]], encoding: str | None, name: str, counts: Counter[str]) -> Numbered:
    """Lines that end with a line feed, without it and one carriage return before it.

    Any other carriage return is a part of the line, as it is for Moses, fairseq, sacrebleu and wc: were it an end, the
    lines after it would not correspond. Raises InputError for a file that has no line feeds.
    """
    counts.clear()
    with decoded(opener, encoding, name, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removesuffix("\n").removesuffix("\r")
            if "\r" in text:
                counts[INSIDE] += 1
                if number == 1 and line[-1] != "\n":
                    raise InputError(f"{name}: its lines end with carriage returns alone; convert them to line feeds")
            yield number, undecodable(text, lines) or {"text": text}
