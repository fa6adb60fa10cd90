"""A comparison of runs as a table for people: on the terminal and as Markdown."""

from collections.abc import Sequence
from string import ascii_uppercase

from lmtrain.config.values import Document
from lmtrain.metrics import distinct, higher_is_better
from lmtrain.runs.markdown import markdown_table
from lmtrain.runtime.console import format_number

Rows = list[list[str]]

FEW = 2
"""Up to so many runs the table shows intervals."""


def letter(number: int) -> str:
    """A, B, … Z, AA, … for a run."""
    rest, last = divmod(number, 26)
    return (letter(rest - 1) if rest else "") + ascii_uppercase[last]


def legend(document: Document) -> list[str]:
    return [f"{letter(number)} = {run['path']}" for number, run in enumerate(document["runs"])]


def metric_rows(document: Document) -> Rows:
    """A row for each metric, a column for each run; the best value has an asterisk where the runs can be compared."""
    runs = document["runs"]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in distinct(run["metrics"])):
        values = [run["metrics"].get(name) for run in runs]
        best = _best(name, values) if document["comparable"] and name not in document["left_out"] else None
        rows.append(
            [name, *(_cell(run, name, value, best, len(runs)) for run, value in zip(runs, values, strict=True))]
        )
    return rows


def setting_rows(document: Document) -> Rows:
    """A row for each setting that differs."""
    return [[name, *map(_setting, values)] for name, values in document["differing_settings"].items()]


def findings(document: Document) -> list[str]:
    """What can be concluded, a sentence each."""
    if not document["comparable"]:
        return [f"not comparable: {document['reason']}"]
    names = {run["path"]: letter(number) for number, run in enumerate(document["runs"])}
    lines = [f"not comparable: {reason}" for reason in document["left_out"].values()]
    for pair in document["pairs"]:
        if pair["significant"]:
            better = (pair["difference"] > 0) == higher_is_better(pair["metric"])
            first, second = (pair["a"], pair["b"]) if better else (pair["b"], pair["a"])
            sign = 1 if pair["difference"] > 0 else -1
            low, high = sorted(sign * bound for bound in pair["interval"])
            lines.append(
                f"{names[first]} is better than {names[second]} in {pair['metric']} by "
                f"{format_number(abs(pair['difference']))} (95 %: {format_number(low)} to {format_number(high)}; "
                f"p = {pair['p_adjusted']:.2g} after Holm's correction for {len(document['pairs'])} tests)"
            )
    same = [pair for pair in document["pairs"] if not pair["significant"]]
    if same and len(same) == len(document["pairs"]):
        lines.append(f"no difference is significant ({len(same)} tests, Holm's correction, 5 %)")
    elif same:
        lines.append(f"no other difference is significant ({len(same)} of {len(document['pairs'])} tests)")
    return lines


def markdown(document: Document) -> str:
    """The comparison for a pull request or a job summary."""
    heads = [letter(number) for number in range(len(document["runs"]))]
    parts = ["### lmtrain compare", "\n".join(f"- {line.replace(' = ', ': `', 1)}`" for line in legend(document))]
    parts.append(markdown_table(["metric", *heads], metric_rows(document)))
    if rows := setting_rows(document):
        parts.append(markdown_table(["setting", *heads], rows))
    parts.append("\n".join(f"- {line}" for line in findings(document)))
    return "\n\n".join(parts) + "\n"


def _best(name: str, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(set(known)) == 1:
        return None
    return max(known) if higher_is_better(name) else min(known)


def _cell(run: Document, name: str, value: float | None, best: float | None, runs: int) -> str:
    if value is None:
        return "–"
    interval = run["intervals"].get(name)
    shown = format_number(value) + (" *" if value == best else "")
    return f"{shown} [{', '.join(map(format_number, interval))}]" if interval and runs <= FEW else shown


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
