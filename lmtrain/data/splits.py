"""The splits of a data set by the names of its files and folders, as the Hub finds them: train, validation, test."""

import re
from pathlib import Path

from lmtrain.errors import InputError, visible

FAMILIES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Word in a name -> the split that it means."""

SERVES = {"train": ("train",), "validation": ("validation", "test")}
"""What data are for -> the splits that serve, the best one first."""

SHARD = re.compile(r"(.+?)[-_.]\d{5}-of-\d{5}")


class NoSplits(InputError):
    """A folder whose file names tell of no split."""


def of_file(path: Path) -> str | None:
    """The split that a path, relative to its data set, belongs to: train/a.txt, train.jsonl, train_sft-00000-of-00001.parquet.

    None for a name without such a word, or with words of several splits.
    """
    folder = next((part.lower() for part in path.parts[:-1] if part.lower() in FAMILIES), None)
    if folder:
        return folder
    name = path.name.lower()
    shard = SHARD.match(name)
    if shard and re.split("[-_.]", shard[1])[0] in FAMILIES:
        return shard[1]
    words = [word for word in re.split(r"[-_.\d]+", name) if word in FAMILIES]
    return words[0] if len({FAMILIES[word] for word in words}) == 1 else None


def matching(names: list[str], split: str) -> list[str]:
    """The names that mean the split, or one that serves for it."""
    if split in names:
        return [split]
    for wanted in SERVES.get(split, (FAMILIES.get(split, split),)):
        if found := [name for name in names if family(name) == wanted]:
            return found
    return []


def family(name: str) -> str | None:
    """The split that a name means: `train` for train_sft."""
    return FAMILIES.get(re.split("[-_.]", name.lower())[0])


def choose(names: list[str], split: str, exact: bool, where: str) -> str:
    """The one name that means the split; with `exact`, `split` was typed and no other split serves. Raises InputError."""
    found = [name for name in matching(names, split) if not exact or name == split or family(name) == family(split)]
    if len(found) == 1:
        return found[0]
    sort = f"several splits for '{visible(split)}'" if found else f"no split '{visible(split)}'"
    listed = f"; it has {', '.join(map(visible, names))}: name one, e.g. {where}@{visible(names[0])}" if names else ""
    raise InputError(f"{where}: has {sort}{listed}")


def note(names: list[str], chosen: str | None, split: str, where: str) -> list[str]:
    """What to say about the split that is read, and those that are not."""
    others = [visible(name) for name in names if name != chosen]
    left = f"not {', '.join(others)} ({where}@{others[0]} names {'one' if others[1:] else 'it'})" if others else ""
    if chosen is None:
        return [f"{where}: files of no split are read, {left}"]
    serves = "" if family(chosen) == family(split) or chosen == split else f" for {split}"
    read = f"{where}: the split {visible(chosen)} is read{serves}"
    return [f"{read}, {left}" if left else read] if left or serves else []
