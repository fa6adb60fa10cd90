"""Chooses the columns of a table: by the flags that name them, otherwise by the names of known layouts."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from lmtrain.config.data import Split
from lmtrain.data.chat_layouts import as_chats, only_chats, usual_chats
from lmtrain.data.columns import ABSENT, Record, lookup, spellings, template_fields
from lmtrain.data.selection import OPTIONS, Selection
from lmtrain.errors import InputError, UsageError, suggestion, visible

FAMILIAR = (
    ("messages", ("messages",)),
    ("prompt", ("prompt", "completion")),
    ("prompt", ("prompt", "response")),
    ("text", ("text",)),
    ("text", ("content",)),
    ("text", ("document",)),
    ("text", ("sentence",)),
    ("prompt", ("instruction", "response")),
    ("prompt", ("question", "answer")),
    ("pairs", ("source", "target")),
    ("pairs", ("document", "summary")),
    ("pairs", ("article", "highlights")),
    ("pairs", ("article", "summary")),
    ("pairs", ("dialogue", "summary")),
    ("pairs", ("text", "summary")),
    ("pairs", ("input", "target")),
    ("pairs", ("input", "output")),
    ("pairs", ("question", "answer")),
    ("labelled", ("text", "label")),
    ("labelled", ("sentence", "label")),
    ("tagged", ("tokens", "tags")),
    ("tagged", ("tokens", "ner_tags")),
)
"""(kind, column names) to detect, the least ambiguous names first."""


def choose(first: Record, data: Split, where: str) -> Selection:
    """Choose the columns to read by the flags and the columns of the first records, `first`.

    Raises UsageError for flags that do not fit together, InputError for columns that are missing or not detected.
    """
    options = data.model_dump()
    named = [option for kind in data.kinds for option in OPTIONS[kind] if options.get(option)]
    if len({kind for kind in data.kinds for option in OPTIONS[kind] if option in named}) > 1:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in named)
        raise UsageError(f"{flags} select different kinds of rows; give those of one kind")
    for kind in data.kinds:
        given = [path for option in OPTIONS[kind] if (path := options.get(option))]
        if len(given) == len(OPTIONS[kind]):
            for path in given:
                _require(first, path, where)
            return as_chats(Selection(kind, tuple(given), detected=False), first, data.kinds)
        if given:
            flags = " and ".join(f"--{option.replace('_', '-')}" for option in OPTIONS[kind])
            raise UsageError(f"{flags} belong together; give both")
    if "pairs" in data.kinds and (selection := _languages(first, options, where)):
        return selection
    if selection := usual_chats(first, data.kinds):
        return selection
    for kind, names in FAMILIAR:
        if kind in data.kinds and all(name in first for name in names):
            return as_chats(Selection(kind, names, detected=True), first, data.kinds)
    if selection := only_chats(first, data.kinds):
        return selection
    flags = " or ".join(" ".join(f"--{o.replace('_', '-')}" for o in OPTIONS[kind]) for kind in reversed(data.kinds))
    raise InputError(f"{where}: which column to use? It has {_names(first)}; name it with {flags}")


def _languages(first: Record, options: dict[str, Any], where: str) -> Selection | None:
    """Detect columns named by language codes: {"de": …, "en": …} or {"translation": {"de": …, "en": …}}."""
    source, target = options.get("source_lang"), options.get("target_lang")
    for prefix, *names in product(("", "translation."), spellings(source), spellings(target)):
        paths = prefix + names[0], prefix + names[1]
        if (names[0] != names[1] or source == target) and all(lookup(first, path) is not ABSENT for path in paths):
            return Selection("pairs", paths, detected=True)
    if "source_column" in options and isinstance(first.get("translation"), Mapping):
        languages = ", ".join(first["translation"])
        if source and target:
            raise InputError(
                f"{where}: has translations in {languages}, not in {source} and {target}; name the columns, e.g. "
                "--source-column translation.en --target-column translation.ko"
            )
        raise InputError(
            f"{where}: has translations in {languages}; give the direction with --source-lang and --target-lang"
        )
    return None


def _require(first: Record, path: str, where: str) -> None:
    if names := template_fields(first, path):
        for name in names:
            _require(first, name, where)
        return
    if lookup(first, path) is ABSENT and path.split(".")[0] not in first:
        raise InputError(f"{where}: no column '{visible(path)}'; it has {_names(first)}{suggestion(path, first)}")


def _names(record: Record) -> str:
    plain = [visible(str(name), 40) for name in record]
    names = [name if name == name.strip() else f"'{name}'" for name in plain]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
