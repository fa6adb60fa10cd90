"""report.html of a run folder: one page that shows the run, which needs neither a script nor a network."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmtrain.metrics import base_name, distinct
from lmtrain.runs.charts import Line, chart
from lmtrain.runs.file_names import METRICS, PREDICTIONS, SAMPLES
from lmtrain.runs.label_tables import label_sections
from lmtrain.runs.model_card import shown_name
from lmtrain.runs.page import card, page, section, table
from lmtrain.runs.summary import gate_outcome
from lmtrain.runtime.console import format_number

Document = Mapping[str, Any]

STEPS_SHOWN = 4
"""Evaluations whose samples are shown: the first, the last and some between them."""

LONGEST_SAMPLE = 400
"""Characters of a sample that are shown."""


def report(folder: Path, results: Document) -> str:
    """The page about a run from its results and the logs in its folder."""
    events, samples = read_lines(folder / METRICS), read_lines(folder / SAMPLES)
    title = f"{shown_name(results['model'])} · lmtrain {results['objective']}"
    train = results["train"]
    when = results.get("finished", "")[:16].replace("T", " ")
    ended = f"{results['status']} after {train['steps']:,} steps ({train['epochs']:.4g} epochs)"
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(ended)} · {escape(when)} UTC · {escape(folder.resolve().name)}</p>',
            section("Figures", f'<div class="cards">{_headlines(results)}</div>'),
            section("Gates", table(["gate", "value", ""], _gates(results))),
            section("Curves", _curves(events)),
            label_sections(results.get("data", {}).get("kind"), read_lines(folder / PREDICTIONS)),
            section("Samples", _samples(samples)),
            section("Rows and tokens", _ledger(results)),
            section("Settings", table([], _settings(results))),
            section("How the metrics were computed", table([], list(distinct(results.get("signatures", {})).items()))),
            section("Environment", table([], [(name, str(value)) for name, value in results["environment"].items()])),
            section("Command", f"<pre>{escape(results['command'])}</pre>" if results.get("command") else ""),
        ],
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off when the run died is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _headlines(results: Document) -> str:
    """The metrics with their intervals, and what the training took."""
    intervals, before = results.get("intervals", {}), results.get("initial_metrics", {})
    cards = []
    for name, value in distinct(results["metrics"]).items():
        low_high = " to ".join(map(format_number, intervals.get(name, ())))
        was = f"before: {format_number(before[name])}" if before.get(name) is not None else ""
        below = " · ".join(part for part in (f"95 %: {low_high}" if low_high else "", was) if part)
        cards.append(card(name, format_number(value), below))
    train = results["train"]
    cards.append(card("tokens trained", f"{train['tokens_trained']:,}", f"{train['tokens_per_second']:,.0f} a second"))
    cards.append(card("time", duration(train["seconds"])))
    if peak := train.get("peak_memory_bytes"):
        cards.append(card("peak memory", f"{peak / 1e9:.2f} GB"))
    return "".join(cards)


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


def _gates(results: Document) -> list[list[str]]:
    shown = [(g["expression"], g["value"], gate_outcome(g)) for g in results.get("gates", ())]
    return [[name, "–" if value is None else format_number(value), outcome] for name, value, outcome in shown]


# --- curves ----------------------------------------------------------------------------------------------------------


def _curves(events: Sequence[Document]) -> str:
    """Charts of what was logged; a metric that was evaluated once makes no curve."""
    training = [event for event in events if "loss" in event]
    evaluations = [event for event in events if "eval_loss" in event]
    charts = [
        chart(
            "Loss",
            [_line("training", training, "loss"), _line("evaluation", evaluations, "eval_loss")],
            "nats per token",
        ),
        *(chart(name, [_line("evaluation", evaluations, name)]) for name in _metrics_of(evaluations)),
        chart("Learning rate", [_line("learning rate", training, "learning_rate")]),
        chart("Gradient norm", [_line("before clipping", training, "grad_norm")]),
        chart("Throughput", [_line("training", training, "tokens_per_second")], "tokens per second"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _metrics_of(evaluations: Sequence[Document]) -> list[str]:
    """The metrics, other than the loss, with two values or more. Those of generation have none at step 0."""
    names = distinct(dict.fromkeys(name for event in evaluations for name in event))
    usual = [name for name in names if name not in ("step", "epoch", "eval_loss") and base_name(name) != "perplexity"]
    return [name for name in usual if sum(name in event for event in evaluations) > 1]


def _line(name: str, events: Sequence[Document], key: str) -> Line:
    return Line(name, points_of(events, key))


def points_of(events: Sequence[Document], key: str) -> list[tuple[float, float]]:
    """(step, value) of each line of metrics.jsonl that has a number under this key."""
    pairs = ((event.get("step"), event.get(key)) for event in events)
    return [(float(s), float(v)) for s, v in pairs if isinstance(s, int) and isinstance(v, int | float)]


# --- tables ----------------------------------------------------------------------------------------------------------


def _samples(samples: Sequence[Document]) -> str:
    """What the model wrote for the same rows, step beside step."""
    steps = _spread(sorted({sample["step"] for sample in samples if isinstance(sample.get("step"), int)}))
    if not steps:
        return ""
    at = {step: [sample for sample in samples if sample.get("step") == step] for step in steps}
    rows = []
    for number in range(min(map(len, at.values()))):
        each = [at[step][number] for step in steps]
        same = [(name, text) for name, text in each[-1].items() if name not in ("step", "output")]
        rows.append(
            [
                "\n".join(f"{name}: {_cut(text)}" for name, text in same),
                *(_cut(sample.get("output", "")) for sample in each),
            ]
        )
    return table(["", *(f"step {step:,}" for step in steps)], rows, kind="samples")


def _spread(steps: list[int]) -> list[int]:
    """The first, the last and evenly many between them."""
    if len(steps) <= STEPS_SHOWN:
        return steps
    return [steps[round(number * (len(steps) - 1) / (STEPS_SHOWN - 1))] for number in range(STEPS_SHOWN)]


def _cut(text: object) -> str:
    text = str(text)
    return text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + "…"


def _ledger(results: Document) -> str:
    ledgers = {name: results["data"][name] for name in ("train", "eval") if name in results["data"]}
    names = dict.fromkeys(name for ledger in ledgers.values() for name in ledger if name != "fingerprint")
    rows = [
        [name.replace("_", " "), *(_count(ledger.get(name)) for ledger in ledgers.values())]
        for name in names
        if any(ledger.get(name) for ledger in ledgers.values())
    ]
    return table(["", *ledgers], rows, numbers=True)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}" if isinstance(value, float) else "–"


def _settings(results: Document) -> list[tuple[str, str]]:
    """The settings that have a value."""
    return [
        (name, _setting(value)) for name, value in results.get("settings", {}).items() if value not in (None, [], "")
    ]


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
