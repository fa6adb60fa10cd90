"""Chooses the columns of a table: by the flags that name them, otherwise by the names of familiar.py."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from lmtrain.config.data import Split
from lmtrain.config.labelled_data import ClassData, joined_pair
from lmtrain.data.chat_layouts import as_chats, only_chats, usual_chats
from lmtrain.data.columns import (
    ABSENT,
    TWICE,
    BadRow,
    Record,
    lookup,
    spellings,
    template_fields,
    with_line_breaks,
)
from lmtrain.data.familiar import FAMILIAR, JOINED, PARTNERS, QUESTION
from lmtrain.data.labelled_rows import kind_of_labels
from lmtrain.data.messages import COLUMNS, chat_column
from lmtrain.data.selection import OPTIONS, Selection
from lmtrain.errors import InputError, LmtrainError, UsageError, suggestion, visible


class FirstValues(Mapping[str, Any]):
    """The columns of several records, each with its first value that is not empty; None where none can be converted."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self.names = list(dict.fromkeys(name for record in records for name in record))

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        values = (value_of(record, name) for record in self.records if name in record)
        return next((value for value in values if value not in (None, "", [])), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def value_of(record: Record, name: str) -> Any:
    """The value of a column; None where there is none, or where it cannot be converted."""
    try:
        return record.get(name)
    except BadRow:
        return None


def choose(first: Record, data: Split, where: str, hint: str = "") -> Selection:
    """Choose the kind of rows and the columns to read, see `_columns`."""
    selection = _columns(first, data, where, hint)
    if selection.kind != "labelled" or not isinstance(data, ClassData):
        return selection
    return replace(selection, kind=kind_of_labels(first, selection.paths[1], data.problem_type))


def _columns(first: Record, data: Split, where: str, hint: str) -> Selection:
    """Choose the columns to read by the flags and the columns of the first records, `first`.

    Raises UsageError for flags that do not fit together, InputError for columns that are missing or not detected;
    `hint` is what else there is to say then.
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
                require(first, path, where, hint)
            if pair := options.get("text_pair_column"):
                given[0] = joined_pair(given[0], pair)
                require(first, given[0], where, hint)
            paths = tuple(as_template(first, path) for path in given)
            return as_chats(Selection(kind, paths, detected=False), first, data.kinds)
        if given:
            flags = " and ".join(f"--{option.replace('_', '-')}" for option in OPTIONS[kind])
            raise UsageError(f"{flags} belong together; give both")
    if "pairs" in data.kinds and (selection := _languages(first, options, where)):
        return selection
    if selection := usual_chats(first, data.kinds):
        return selection
    if selection := _familiar(first, data, where) or only_chats(first, data.kinds):
        return selection
    flags = " or ".join(" ".join(f"--{o.replace('_', '-')}" for o in OPTIONS[kind]) for kind in reversed(data.kinds))
    raise InputError(f"{where}: which column to use? It has {column_names(first)}; name it with {flags}{hint}")


def _familiar(first: Record, data: Split, where: str) -> Selection | None:
    """Detect columns by their names. Raises InputError for a name that occurs twice."""
    for kind, familiar in FAMILIAR:
        names = [as_spelled(first, name) for name in familiar]
        if kind in data.kinds and all(lookup(first, name) is not ABSENT for name in names):
            joins = kind in ("prompt", "pairs", "labelled")
            paths = (joined(first, names[0], data.joint), *names[1:]) if joins else tuple(names)
            for path in paths:
                require(first, path, where)
            return as_chats(Selection(kind, paths, detected=True), first, data.kinds)
    return None


def as_spelled(first: Record, name: str) -> str:
    """The name of a column as the table spells it, which may be in capitals."""
    if lookup(first, name) is not ABSENT:
        return name
    return next((column for column in first if column.lower() == name), name)


def joined(first: Record, name: str, joint: str = "\n") -> str:
    """The column of an input, or a template of it and of the columns of text that belong to it."""
    if not isinstance(first.get(name), str | None):
        return name  # a chat
    before, after = (
        [part for part in (as_spelled(first, part) for part in parts) if _is_text(first, part)]
        for parts in JOINED.get(name.lower(), ((), ()))
    )
    names = [*before, name, *after]
    if joint == "\n" and [part.lower() for part in names] == ["question", "context"]:
        return QUESTION.format(*names)
    return joint.join(f"{{{part}}}" for part in names) if names[1:] else name


def _is_text(first: Record, name: str) -> bool:
    return name in first and isinstance(first[name], str | None)


def as_template(first: Record, path: str) -> str:
    r"""The path; in a template `\n`, as a shell passes it, is a line break."""
    return with_line_breaks(path) if template_fields(first, path) else path


def header_hint(kinds: Sequence[str]) -> str:
    """What to add where the columns of a table with a header are not found."""
    kind = "labelled" if "labelled" in kinds else kinds[-1]
    names = ",".join(option.removesuffix("_column") for option in OPTIONS[kind])
    return f"; the first line is read as the header: if it is a row, name the columns, e.g. --columns {names}"


def left_out(paths: Sequence[str], records: Sequence[Record], flag: str) -> list[str]:
    """A warning for each column that probably belongs to the input and holds something, but is not selected."""
    used = {name for path in paths for name in template_fields(records[0], path) or [path]}
    groups = ([as_spelled(records[0], name) for name in group] for group in PARTNERS)
    likely = (name for group in groups if used.intersection(group) for name in group if name not in used)
    main = template_fields(records[0], paths[0]) or [paths[0]]
    warnings = []
    for name in likely:
        values = [value for record in records if _is_filled(value := value_of(record, name))]
        if values and isinstance(values[0], str):
            template = "\\n".join(f"{{{part}}}" for part in [*main, name])
            warnings.append(f"column '{name}' is not used; a template includes it, e.g. {flag} '{template}'")
        elif values and values[0] is not TWICE:
            warnings.append(f"column '{name}' is not used: it does not hold text")
    return warnings


def _is_filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


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


def require(first: Record, path: str, where: str, hint: str = "") -> None:
    """Raise InputError if there is no such column, or if there are two of its name."""
    if names := template_fields(first, path):
        for name in names:
            require(first, name, where, hint)
        return
    if path in first and first[path] is TWICE:
        raise InputError(f"{where}: duplicate column '{visible(path)}'; rename one of them")
    if lookup(first, path) is ABSENT and path.split(".")[0] not in first:
        known = column_names(first)
        raise InputError(f"{where}: no column '{visible(path)}'; it has {known}{suggestion(path, first)}{hint}")


def column_names(record: Iterable[str]) -> str:
    """The names of columns, for messages."""
    plain = [visible(str(name), 40) for name in record]
    names = [name if name == name.strip() else f"'{name}'" for name in plain]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def named_columns(data: Split) -> set[str]:
    """The columns that flags name or give names to."""
    paths = [path for kind in data.kinds for option in OPTIONS[kind] if (path := getattr(data, option, None))]
    return {*data.columns, *(name for path in paths for name in template_fields({}, path) or [path])}


def is_row(data: Split, record: Record) -> bool:
    """Whether an object is a usable row, even if it also contains a list of objects."""
    try:
        return chat_column(record, COLUMNS) is not None or choose(record, data, "").value(record) is not None
    except (LmtrainError, BadRow):
        return False
