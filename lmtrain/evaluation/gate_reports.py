"""What CI systems read about gates: JUnit XML, and the summary page of a GitHub job."""

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from lmtrain.config.values import Document
from lmtrain.errors import visible
from lmtrain.evaluation.gates import Gate, failure, finite
from lmtrain.metrics import distinct
from lmtrain.runtime.files import write_text
from lmtrain.runtime.redaction import redact


def write_junit(path: Path, gates: Iterable[Gate], subject: str) -> None:
    """Write JUnit XML with one test case per gate: a failure where it failed, an error where it could not be judged.

    `subject` names objective and model. Raises OSError.
    """
    gates = list(gates)
    suite = ElementTree.Element(
        "testsuite",
        name=f"lmtrain {visible(subject, 200)}",
        tests=str(len(gates)),
        failures=str(sum(not gate.holds and not gate.reason for gate in gates)),
        errors=str(sum(bool(gate.reason) for gate in gates)),
    )
    for gate in gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname="lmtrain.gates", name=visible(gate.expression, 1000)
        )
        if not gate.holds:
            kind = "error" if gate.reason else "failure"
            ElementTree.SubElement(case, kind, message=visible(redact(failure(gate.document())), 1000))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def append_summary(path: Path, results: Document) -> None:
    """Append the tables to GitHub's job summary. Raises OSError."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(markdown(results))


def markdown(results: Document) -> str:
    """Metrics and gates as Markdown tables."""
    intervals = results.get("intervals", {})
    title = f"### lmtrain {results['objective']}: `{visible(results['model'], 200)}`"
    lines = [title, "", "| metric | value | 95 % |", "|---|---|---|"]
    for name, value in distinct(results["metrics"]).items():
        interval = " – ".join(_number(bound) for bound in intervals.get(name, ()))
        lines.append(f"| {name} | {_number(value)} | {interval} |")
    if results["gates"]:
        lines += ["", "| | gate | value |", "|---|---|---|"]
    for gate in results["gates"]:
        outcome = gate.get("reason") or _number(gate["value"])
        lines.append(f"| {'✅' if gate['holds'] else '❌'} | `{gate['expression']}` | {visible(outcome, 300)} |")
    return "\n".join([*lines, "", ""])


def _number(value: object) -> str:
    number = finite(value)
    return "–" if number is None else f"{number:.6g}"
