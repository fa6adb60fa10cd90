"""Gates: conditions on metrics, from `--assert` and `--baseline`, checked against the results."""

import json
import math
import operator
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lmtrain.config.assertions import GRAMMAR
from lmtrain.config.eval import Gates
from lmtrain.config.values import Document
from lmtrain.errors import GateFailed, InputError, StorageError, UsageError, suggestion, visible
from lmtrain.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER

OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Gate:
    """A checked gate, as results.json lists it."""

    expression: str
    value: float
    """The value of the metric."""
    holds: bool


def read_baseline(path: str | None, objective: str) -> Document | None:
    """Read the results of an earlier run, or of its folder.

    Raises InputError for a file without metrics, or with those of another objective.
    """
    if path is None:
        return None
    file = Path(path, "results.json") if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        metrics = document["metrics"]
        usable = metrics and all(isinstance(value, int | float) for value in metrics.values())
    except OSError as error:
        raise InputError(f"--baseline {file}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--baseline {file}: not JSON: {error}") from None
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError(f"--baseline {file}: contains no metrics; expected the output of `lmtrain eval --json`")
    if (before := document.get("objective")) not in (None, objective):
        raise InputError(f"--baseline {file}: metrics of {before}, but the objective is {objective}")
    return document


def check(section: Gates, results: Document, baseline: Document | None) -> list[Gate]:
    """Check the gates of a recipe against the results.

    Raises UsageError for a metric that the results lack, InputError for a baseline without any of their metrics.
    """
    gates = [_assertion(expression, results) for expression in section.assertions]
    if baseline is not None:
        gates += _regressions(results, baseline, section.max_regression, section.baseline)
    return gates


def _assertion(expression: str, results: Document) -> Gate:
    match = GRAMMAR.fullmatch(expression)
    assert match, "the recipe accepts no other expression"
    name, sign, number = match.groups()
    value = results["metrics"].get(name)
    if value is None:
        value = _at_path(name, results)
    if not isinstance(value, int | float):
        known = list(results["metrics"])
        raise UsageError(
            f"--assert {expression}: there is no metric {name!r}; there are {', '.join(known) or 'none'}"
            f"{suggestion(name, known)}"
        )
    return Gate(expression, value, bool(OPERATORS[sign](value, float(number))))


def _at_path(path: str, results: Document) -> Any:
    """The value at a path such as `train.last_loss`; None where there is none."""
    value: Any = results
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _regressions(results: Document, baseline: Document, tolerance: float, path: str | None) -> list[Gate]:
    """A gate per metric that both have: not worse than the baseline by more than the share `tolerance` of its value."""
    gates = []
    for name, value in results["metrics"].items():
        old = baseline["metrics"].get(name)
        if old is None or name not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            continue
        slack = abs(old) * tolerance
        sign, limit = ("<=", old + slack) if name in LOWER_IS_BETTER else (">=", old - slack)
        gates.append(Gate(f"{name}{sign}{limit:.10g}", value, OPERATORS[sign](value, limit) and math.isfinite(value)))
    if not gates:
        raise InputError(f"--baseline {path}: contains none of the metrics {', '.join(results['metrics'])}")
    return gates


def settle(section: Gates, results: Document, baseline: Document | None) -> None:
    """Check the gates, enter them into the results as `gates`, and write the JUnit file and GitHub's job summary.

    Raises as `check` does, and StorageError.
    """
    gates = check(section, results, baseline)
    results["gates"] = [asdict(gate) for gate in gates]
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if section.junit:
            write_junit(Path(section.junit), gates, results)
        if summary:
            with Path(summary).open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(markdown(results))
    except OSError as error:
        raise StorageError(f"{error.filename or section.junit or summary}: {error.strerror}") from None


def enforce(results: Document) -> None:
    """Raise GateFailed if a gate in the results failed; the message names each of them."""
    failed = [gate for gate in results["gates"] if not gate["holds"]]
    if failed:
        raise GateFailed("\n".join(_failure(gate["expression"], gate["value"]) for gate in failed))


def _failure(expression: str, value: float) -> str:
    return f"gate failed: {expression} (got {value:.6g})"


def write_junit(path: Path, gates: list[Gate], results: Document) -> None:
    """Write JUnit XML with one test case per gate, for CI systems."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"lmtrain {results['objective']} {visible(results['model'], 200)}",
        tests=str(len(gates)),
        failures=str(sum(not gate.holds for gate in gates)),
        errors="0",
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="lmtrain.gates", name=gate.expression)
        if not gate.holds:
            ElementTree.SubElement(case, "failure", message=_failure(gate.expression, gate.value))
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def markdown(results: Document) -> str:
    """Metrics and gates as Markdown tables, for the summary page of a CI job."""
    intervals = results.get("intervals", {})
    title = f"### lmtrain {results['objective']}: `{visible(results['model'], 200)}`"
    lines = [title, "", "| metric | value | 95 % |", "|---|---|---|"]
    for name, value in results["metrics"].items():
        interval = " – ".join(f"{bound:.6g}" for bound in intervals.get(name, ()))
        lines.append(f"| {name} | {value:.6g} | {interval} |")
    if results["gates"]:
        lines += ["", "| | gate | value |", "|---|---|---|"]
    for gate in results["gates"]:
        lines.append(f"| {'✅' if gate['holds'] else '❌'} | `{gate['expression']}` | {gate['value']:.6g} |")
    return "\n".join([*lines, "", ""])
