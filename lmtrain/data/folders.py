"""Which files of a folder or a pattern are data: all that can be read, of the wanted split, and what is left out is said."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from pathlib import Path

from lmtrain.data import splits
from lmtrain.data.readers.contents import JSON_OBJECT, by_name, is_marked, not_text
from lmtrain.data.readers.formats import FORMATS, TEXT, format_of
from lmtrain.data.readers.text_files import first_lines, open_bytes, start_of
from lmtrain.errors import InputError, visible

METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "_SUCCESS")
"""Files without rows in the folder of a saved dataset, or of what Spark writes."""

DOCUMENTATION = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation)\b.*", re.IGNORECASE)
"""Names of files about the data."""

ROWS, PROSE = "rows", "text"
"""What a file is that is read."""

CACHE = "a cache of datasets"


@dataclass
class Files:
    """The files to read, and those left out."""

    where: str
    paths: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names."""
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, name: Path | str) -> None:
        self.left_out.setdefault(reason, []).append(str(name))

    def all_notes(self) -> list[str]:
        """The notes, with one on what is left out."""
        if not self.left_out:
            return self.notes
        count = sum(map(len, self.left_out.values()))
        return [*self.notes, f"{self.where}: {count:,} left out: {self.reasons()}; name a file to read it"]

    def reasons(self) -> str:
        """What is left out, by reason."""
        return "; ".join(f"{_list(names)} ({reason})" for reason, names in self.left_out.items())


def in_folder(folder: Path, split: str, exact: bool, encoding: str | None) -> Files:
    """The files of a split, `train` or `validation`; with `exact`, of the split of this name. Raises InputError."""
    found = Files(str(folder))
    saved = folder / "dataset_dict.json"  # written by DatasetDict.save_to_disk
    if saved.exists():
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        name = splits.choose(names, split, exact, str(folder))
        found.notes += [] if exact else splits.note(names, name, split, str(folder))
        folder = folder / name
    candidates = _inside(_walk(folder, found), folder, found)
    _classify(candidates, folder, encoding, found)
    if not saved.exists():
        _take_split(folder, split, exact, found)
    if not found.paths:
        left = f"; left out are {found.reasons()}" if found.left_out else ""
        raise InputError(f"{folder}: no data in this folder{left}; the formats are {' '.join(FORMATS)} and plain text")
    return found


def by_pattern(pattern: str, encoding: str | None) -> Files:
    """The files that match a pattern. Raises InputError."""
    found = Files(pattern)
    matches = sorted(Path(match) for match in glob(pattern, recursive=True))  # noqa: PTH207 - a pattern may be absolute
    for match in matches:
        if match.is_dir() and "**" not in pattern:
            found.leave_out("a folder", match)
    _classify([match for match in matches if match.is_file()], None, encoding, found)
    if not found.paths:
        left = f"; left out are {found.reasons()}" if found.left_out else ""
        raise InputError(
            f"{pattern}: no file matches this pattern{left}; the formats are {' '.join(FORMATS)} and plain text"
        )
    common = Path(os.path.commonpath([path.parent for path in found.paths]))
    names = sorted({name for path in found.paths if (name := splits.of_file(path.relative_to(common)))})
    if len({splits.family(name) for name in names}) > 1:
        found.notes.append(f"{pattern}: matches files of the splits {', '.join(names)}, and all are read")
    return found


def _walk(folder: Path, found: Files) -> list[Path]:
    """All files that are not hidden, in order."""
    files = []
    for parent, folders, names in os.walk(folder):
        hidden = [f"{name}/" for name in folders if name.startswith(".")] + [n for n in names if n.startswith(".")]
        for name in sorted(hidden):
            found.leave_out("hidden", Path(parent, name).relative_to(folder))
        # os.walk follows the order of this list, which differs between file systems.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return [file for file in files if file.is_file()]


def _inside(files: list[Path], folder: Path, found: Files) -> list[Path]:
    """The files without links to outside: a folder may come from anyone, so those are read only if they are named."""
    inside = [file for file in files if not file.is_symlink() or _leads_into(file, folder)]
    if len(inside) < len(files):
        note = f"{folder}: {len(files) - len(inside):,} links lead out of the folder and are skipped; name them to read them"
        if not inside:
            raise InputError(note)
        found.notes.append(note)
    return inside


def _leads_into(file: Path, folder: Path) -> bool:
    """Whether a link leads into the folder or, in a Hub cache, to the blobs next to its snapshot."""
    target, root = file.resolve(), folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"]
    return any(target.is_relative_to(allowed) for allowed in (root, *blobs))


def _classify(files: list[Path], base: Path | None, encoding: str | None, found: Files) -> None:
    """Sort the files into those to read and those left out, whose names are relative to `base`."""
    saved = {folder: _data_files(folder) for folder in {file.parent for file in files if file.suffix == ".arrow"}}
    kinds = {
        file: CACHE if file.suffix == ".arrow" and _is_cache(file.name, saved[file.parent]) else _kind(file, encoding)
        for file in files
    }
    data = {file for file, kind in kinds.items() if kind == ROWS or (kind == PROSE and not _is_documentation(file))}
    has_rows = any(kinds[file] == ROWS for file in data)
    for file, kind in kinds.items():
        reason = "" if kind in (ROWS, PROSE) else kind
        if not reason and data and file not in data:
            reason = "about the data"
        if not reason and has_rows and kind == PROSE and format_of(file) is None:
            reason = "text beside rows"
        if reason:
            found.leave_out(reason, file.relative_to(base) if base else file)
        else:
            found.paths.append(file)


def _is_documentation(file: Path) -> bool:
    return DOCUMENTATION.fullmatch(file.name) is not None


def _kind(file: Path, encoding: str | None) -> str:
    """ROWS, PROSE, or why the file is left out."""
    if file.name in METADATA:
        return "metadata"
    if form := format_of(file):
        return PROSE if form in TEXT else ROWS
    if what := by_name(file.name):
        return what.split(";")[0]
    start = start_of(partial(open_bytes, file))
    if not start:
        return "empty or not readable"
    if what := not_text(start):
        return what.split(";")[0]
    is_wide = is_marked(start) or (encoding or "").startswith(("utf-16", "utf-32"))
    if b"\0" in start[:8192] and not is_wide:
        return "binary"
    return ROWS if JSON_OBJECT.match(first_lines(start, encoding)) else PROSE


def _is_cache(name: str, data: list[str]) -> bool:
    """Whether an Arrow file is one of those that datasets keeps beside the `data` of a saved dataset."""
    return name not in data if data else name.startswith("cache-")


def _data_files(folder: Path) -> list[str]:
    """The names of the Arrow files of a dataset that was saved to this folder; empty for other folders."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise InputError(f"{folder}: saved by an old version of datasets; load it there and save it anew")
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _take_split(folder: Path, split: str, exact: bool, found: Files) -> None:
    """Keep the files of the split, where names tell of splits."""
    names: dict[str | None, list[Path]] = {}
    for path in found.paths:
        names.setdefault(splits.of_file(path.relative_to(folder)), []).append(path)
    unnamed = names.pop(None, [])
    known = sorted(name for name in names if name)
    if not known and not exact:
        return
    if not known:
        raise splits.NoSplits(f"{folder}: no file's name tells of a split")
    if split == "train" and unnamed and not exact and not splits.matching(known, split):
        found.paths = unnamed
        found.notes += splits.note(known, None, split, str(folder))
        return
    name = splits.choose(known, split, exact, str(folder))
    found.paths = names[name]
    if exact:
        return
    found.notes += splits.note(known, name, split, str(folder))
    for path in unnamed:
        found.leave_out("in no split", path.relative_to(folder))


def _list(names: Iterable[str]) -> str:
    names = [visible(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if names[3:] else "")
