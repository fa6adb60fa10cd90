"""Gates: conditions on metrics, from `--assert` and `--baseline`, checked against the results.

A gate holds only if it is judged by a finite number: what the results lack, NaN and infinity never pass.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lmtrain.config.assertions import OPERATORS, holds, name_of
from lmtrain.config.eval import Gates
from lmtrain.config.values import Document
from lmtrain.errors import GateFailed
from lmtrain.evaluation.baseline import compared_metrics, differences, is_allowed, setup_of
from lmtrain.metrics import distinct, higher_is_better


@dataclass(frozen=True)
class Gate:
    """A checked gate."""

    expression: str
    value: float | None
    """The value of the metric; None if there is none, or none that is finite."""
    holds: bool
    reason: str | None = None
    """Why it cannot be judged."""

    def document(self) -> Document:
        """As results.json lists it."""
        reason = {"reason": self.reason} if self.reason else {}
        return {"expression": self.expression, "value": self.value, "holds": self.holds, **reason}


def judge(section: Gates, results: Document, baseline: Document | None, allowed: Iterable[str]) -> list[Gate]:
    """The gates of a recipe, judged by the results; `allowed` are the names in --allow-drift."""
    gates = [_assertion(expression, results) for expression in section.assertions]
    return gates if baseline is None else gates + _regressions(section, results, baseline, allowed)


def judge_values(expressions: Iterable[str], document: Document) -> list[Document]:
    """Expressions on paths in a document that has no metrics, as results.json lists gates."""
    return [_assertion(expression, {"metrics": {}, **document}).document() for expression in expressions]


def unjudged(section: Gates, reason: str) -> list[Gate]:
    """The gates of a recipe whose run failed, for this reason; at least one."""
    baseline = [_name_of_baseline(section)] if section.baseline else []
    return [Gate(expression, None, False, reason) for expression in [*section.assertions, *baseline] or ["the run"]]


def _name_of_baseline(section: Gates) -> str:
    return f"--baseline {section.baseline}"


def _assertion(expression: str, results: Document) -> Gate:
    name = name_of(expression)
    found = results["metrics"].get(name)
    found = _at_path(name, results) if found is None else found
    value = finite(found)
    if value is None:
        what = f"the results have no {name}" if found is None else f"{name} is not a finite number"
        return Gate(expression, None, False, what)
    return Gate(expression, value, holds(expression, value))


def _at_path(path: str, results: Any) -> Any:
    """The value at a path such as `train.last_loss`; None where there is none."""
    if not isinstance(results, dict):
        return None
    if path in results:  # the metric of a named set has a dot in its name
        return results[path]
    first, _, rest = path.partition(".")
    inner = results.get(first)
    if not rest or not isinstance(inner, dict):
        return None
    found = _at_path(rest, inner)
    if found is None and "." in rest:  # against.dev.bleu.difference
        key, _, last = rest.rpartition(".")
        found = _at_path(last, inner.get(key)) if isinstance(inner.get(key), dict) else None
    return found


def finite(value: object) -> float | None:
    """The value if it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _regressions(section: Gates, results: Document, baseline: Document, allowed: Iterable[str]) -> list[Gate]:
    """A gate for each metric that both have: not worse than before by more than --max-regression of its value."""
    names = compared_metrics(baseline, results["metrics"])
    if not names:
        reason = f"the baseline has none of the metrics {', '.join(results['metrics']) or 'that a run gives'}"
        return [Gate(_name_of_baseline(section), None, False, reason)]
    gates = []
    for name in names:
        changed = differences(setup_of(baseline), setup_of(results), [name])
        refused = [text for drift, text in changed.items() if not is_allowed(drift, allowed)]
        gates.append(_regression(name, results["metrics"][name], baseline["metrics"][name], section, refused))
    return gates


def _regression(name: str, now: object, before: object, section: Gates, refused: list[str]) -> Gate:
    value, old, sign = finite(now), finite(before), ">=" if higher_is_better(name) else "<="
    if old is None or refused:
        reason = f"the baseline was {'; '.join(refused)}" if refused else f"the baseline has no finite {name}"
        return Gate(f"{name} against the baseline", value, False, reason)
    slack = abs(old) * section.max_regression
    limit = old - slack if higher_is_better(name) else old + slack
    expression = f"{name}{sign}{limit:.10g}"
    if value is None:
        return Gate(expression, None, False, f"{name} is not a finite number")
    return Gate(expression, value, bool(OPERATORS[sign](value, limit)))


def uncompared(results: Document, baseline: Document) -> list[str]:
    """The metrics that only one of results and baseline has, or of which nobody knows the better direction."""
    names = distinct(dict.fromkeys([*results["metrics"], *baseline["metrics"]]))
    both = compared_metrics(baseline, results["metrics"])
    return [name for name in names if name not in both]


def enforce(results: Document) -> None:
    """Raise GateFailed if a gate in the results failed; the message names each of them."""
    failed = [gate for gate in results["gates"] if not gate["holds"]]
    if failed:
        raise GateFailed("\n".join(failure(gate) for gate in failed))


def failure(gate: Document) -> str:
    """A sentence about a gate of results.json that failed."""
    why = gate.get("reason") or f"got {gate['value']:.6g}"
    return f"gate failed: {gate['expression']} ({why})"
