"""A comparison of runs as a page: figures, curves above each other, settings that differ."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmtrain.config.values import Document
from lmtrain.metrics import base_name, distinct
from lmtrain.runs.charts import Line, chart
from lmtrain.runs.comparison_tables import findings, legend, letter, metric_rows, setting_rows
from lmtrain.runs.file_names import METRICS
from lmtrain.runs.page import page, section, table
from lmtrain.runs.report import points_of, read_lines
from lmtrain.runtime.console import format_number
from lmtrain.runtime.files import storage_error, write_text
from lmtrain.runtime.redaction import redact_document

CURVES = (("Training loss", "loss"), ("Evaluation loss", "eval_loss"), ("Learning rate", "learning_rate"))
"""Title -> key of metrics.jsonl; the metrics that text is scored by follow."""


def write(path: Path, document: Document) -> None:
    """Write the page. Raises StorageError."""
    document = redact_document(document)
    heads = ["", *(letter(number) for number in range(len(document["runs"])))]
    body = [
        "<h1>lmtrain compare</h1>",
        *(f"<p>{escape(line)}</p>" for line in legend(document)),
        section("Findings", "".join(f"<p>{escape(line)}</p>" for line in findings(document))),
        section("Metrics (* best)", table(heads, metric_rows(document))),
        section("Settings that differ", table(heads, setting_rows(document))),
        section("Curves", _curves(document["runs"])),
        section("Tests", table(["", "metric", "difference", "95 %", "p", "p, Holm"], _tests(document))),
    ]
    try:
        write_text(path, page("lmtrain compare", body))
    except OSError as error:
        raise storage_error(path, error) from None


def _curves(runs: Sequence[dict[str, Any]]) -> str:
    logs = [read_lines(Path(run["path"]) / METRICS) if Path(run["path"]).is_dir() else [] for run in runs]
    names = dict.fromkeys(name for run in runs for name in distinct(run["metrics"]))
    shared = [name for name in names if name != "eval_loss" and base_name(name) != "perplexity"]
    charts = [
        chart(title, [Line(letter(number), points_of(log, key)) for number, log in enumerate(logs)])
        for title, key in (*CURVES, *((name, name) for name in shared))
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _tests(document: Document) -> list[list[str]]:
    names = {run["path"]: letter(number) for number, run in enumerate(document["runs"])}
    return [
        [
            f"{names[pair['a']]} – {names[pair['b']]}",
            pair["metric"],
            format_number(pair["difference"]),
            " to ".join(map(format_number, pair["interval"])),
            f"{pair['p']:.2g}",
            f"{pair['p_adjusted']:.2g}" + (" significant" if pair["significant"] else ""),
        ]
        for pair in document["pairs"]
    ]
