"""Gates: what a figure has to be, read from the command line or a recipe and held against the results."""

import json
import math
import operator
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lmtrain.config.assertions import GRAMMAR
from lmtrain.errors import GateFailed, InputError, StorageError, UsageError, suggestion, visible
from lmtrain.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER

OPERATORS = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """A gate with what became of it: the `value` of the figure, and whether the gate `holds`."""

    expression: str
    value: float
    holds: bool


def read_baseline(path: str | None, objective: str) -> dict[str, Any] | None:
    """The results to be compared with. Raises InputError for a file that holds none of this objective."""
    if path is None:
        return None
    file = Path(path, "results.json") if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        figures = document["metrics"]
        usable = figures and all(isinstance(value, int | float) for value in figures.values())
    except OSError as error:
        raise InputError(f"--baseline {file}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--baseline {file}: not JSON: {error}") from None
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError(f"--baseline {file}: holds no figures; it wants what `lmtrain eval --json` prints")
    if (before := document.get("objective")) not in (None, objective):
        raise InputError(f"--baseline {file}: figures of {before}, these are of {objective}")
    return document


def judge(section: Any, results: dict[str, Any], baseline: dict[str, Any] | None) -> list[Gate]:
    """Hold the gates of a recipe's `gates` section against results.

    Raises UsageError for a figure that the results do not have, InputError for a baseline that has none of theirs.
    """
    judged = [_assertion(expression, results) for expression in section.assertions]
    if baseline is not None:
        judged += _regressions(results, baseline, section.max_regression, section.baseline)
    return judged


def _assertion(expression: str, results: dict[str, Any]) -> Gate:
    match = GRAMMAR.fullmatch(expression)
    assert match, "recipe.py lets no other expression pass"
    name, sign, number = match.groups()
    value: Any = results["metrics"].get(name)
    if value is None:
        value = results
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        known = list(results["metrics"])
        raise UsageError(f"--assert {expression}: there is no figure {name!r}; there are {', '.join(known) or 'none'}"
                         f"{suggestion(name, known)}")  # fmt: skip
    return Gate(expression, value, bool(OPERATORS[sign](value, float(number))))


def _regressions(results: dict[str, Any], baseline: dict[str, Any], share: float, where: str) -> list[Gate]:
    gates = []
    for name, value in results["metrics"].items():
        old = baseline["metrics"].get(name)
        if old is None or name not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            continue
        sign, limit = ("<=", old + abs(old) * share) if name in LOWER_IS_BETTER else (">=", old - abs(old) * share)
        gates.append(Gate(f"{name}{sign}{limit:.10g}", value, OPERATORS[sign](value, limit) and math.isfinite(value)))
    if not gates:
        raise InputError(f"--baseline {where}: has none of the figures {', '.join(results['metrics'])}")
    return gates


def settle(section: Any, results: dict[str, Any], baseline: dict[str, Any] | None) -> None:
    """Judge, and write down where CI will look; the results get their `gates`.

    Raises as `judge` does, and StorageError.
    """
    judged = judge(section, results, baseline)
    results["gates"] = [asdict(gate) for gate in judged]
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if section.junit:
            write_junit(Path(section.junit), judged, results)
        if summary:
            with Path(summary).open("a", encoding="utf-8") as stream:
                stream.write(markdown(results))
    except OSError as error:
        raise StorageError(f"{error.filename or section.junit or summary}: {error.strerror}") from None


def enforce(results: dict[str, Any]) -> None:
    """Raise GateFailed, naming them, where gates do not hold."""
    failed = [gate for gate in results["gates"] if not gate["holds"]]
    if failed:
        raise GateFailed("\n".join(f"gate {g['expression']} does not hold: it is {g['value']:.6g}" for g in failed))


def write_junit(path: Path, judged: list[Gate], results: dict[str, Any]) -> None:
    """One test case a gate, as CI systems show them."""
    failures = sum(not gate.holds for gate in judged)
    suite = ElementTree.Element("testsuite", name=f"lmtrain {results['objective']} {visible(results['model'], 200)}",
                                tests=str(len(judged)), failures=str(failures), errors="0")  # fmt: skip
    for gate in judged:
        case = ElementTree.SubElement(suite, "testcase", classname="lmtrain.gates", name=gate.expression)
        if not gate.holds:
            message = f"{gate.expression} does not hold: it is {gate.value:.6g}"
            ElementTree.SubElement(case, "failure", message=message)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def markdown(results: dict[str, Any]) -> str:
    """Figures and gates as tables, for the summary page of a CI job."""
    intervals = results.get("intervals", {})
    figures = "".join(
        f"| {name} | {value:.6g} | {' – '.join(f'{bound:.6g}' for bound in intervals.get(name, ()))} |\n"
        for name, value in results["metrics"].items()
    )
    gates = "".join(
        f"| {'✅' if gate['holds'] else '❌'} | `{gate['expression']}` | {gate['value']:.6g} |\n"
        for gate in results["gates"]
    )
    table = f"\n| | gate | value |\n|---|---|---|\n{gates}" if gates else ""
    return f"### lmtrain {results['objective']}: `{visible(results['model'], 200)}`\n\n| figure | value | 95 % |\n|---|---|---|\n{figures}{table}\n"
