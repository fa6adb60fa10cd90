"""The commands about runs that were saved: `compare` and `runs`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lmtrain.cli.common import Json, Quiet
from lmtrain.config.assertions import parse_assertions
from lmtrain.errors import InputError, UsageError
from lmtrain.metrics import higher_is_better
from lmtrain.runs import comparison_page, comparison_tables, saved_run
from lmtrain.runs.run_folder import check_output_file
from lmtrain.runtime.console import Console, format_number
from lmtrain.runtime.redaction import redact


def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or files of results.", show_default=False)],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Metric to compare and, the first, to rank by. Repeatable.",
            show_default=False,
            metavar="TEXT",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with the curves, too.", show_default=False, metavar="FILE"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put runs side by side: what differs, and which differences are more than chance.

    A difference is tested on the rows that both runs predicted, by the paired bootstrap. Runs that were scored on other
    data, or with other settings, are shown but not compared.
    """
    if len(runs) < 2:
        raise UsageError("compare needs two runs or more: lmtrain compare RUN RUN")
    if twice := [run for run in dict.fromkeys(runs) if runs.count(run) > 1]:
        raise UsageError(f"{twice[0]} is named twice")
    check_output_file(str(html) if html else None, "--html")
    console = Console(quiet=quiet, as_json=json)
    found = [saved_run.read_run(path) for path in runs]
    from lmtrain.commands import compare as comparing

    document = comparing.compare(found, metric or [], console)
    if html:
        comparison_page.write(html, document)
    if markdown:
        sys.stdout.write(redact(comparison_tables.markdown(document)))
        return
    heads = [comparison_tables.letter(number) for number in range(len(runs))]
    rows = [*comparison_tables.metric_rows(document), *comparison_tables.setting_rows(document)]
    below = [*comparison_tables.legend(document), *comparison_tables.findings(document)]
    console.result(document, rows, "compare (* best)", below, ["", *heads])


def push(
    run: Annotated[str, typer.Argument(help="Folder of a completed run.")],
    repository: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub: org/name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you and your organisation see it.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Share a run on the Hugging Face Hub: model, card, recipe, results and log.

    Data, samples and predictions stay here, and so do paths of this machine and secrets. After an error the same command
    goes on.
    """
    from lmtrain.commands import push as pushing

    console = Console(quiet=quiet, as_json=json)
    done = pushing.push(run, repository, private, console)
    console.result(done, [("files", str(len(done["files"]))), ("address", done["url"])], f"push {run}")


class Order(StrEnum):
    """What `lmtrain runs` sorts by, besides a metric."""

    path = "path"
    finished = "finished"
    bytes = "bytes"


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder to look through.")] = Path("runs"),
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="Only these: completed, interrupted, failed, running, unfinished.", show_default=False
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Only runs with e.g. bleu>20. Repeatable.", show_default=False, metavar="TEXT"),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="finished, path, bytes or a metric.", metavar="TEXT")
    ] = "finished",
    json: Json = False,
) -> None:
    """List the runs in a folder, the newest or the best last."""
    console = Console(as_json=json)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds your runs")
    try:
        conditions = parse_assertions(where or [])
    except ValueError as error:
        raise UsageError(f"--where: {error}") from None
    found = [saved_run.describe(path) for path in saved_run.find_runs(folder)]
    found = [run for run in found if status in (None, run["status"]) and saved_run.fulfils(run, conditions)]
    metrics = list(dict.fromkeys(name for run in found for name in run["metrics"]))
    if sort not in [*Order, *metrics]:
        raise UsageError(f"--sort {sort}: choose {', '.join([*Order, *metrics])}")
    found.sort(key=lambda run: _key(run, sort))
    console.result(found, [_row(run, sort) for run in found], f"{len(found)} runs in {folder}", (), HEADER)


HEADER = ("run", "status", "objective", "model", "metrics", "size", "finished (UTC)")


def _key(run: dict[str, Any], sort: str) -> Any:
    if sort in list(Order):
        return run[sort]
    value = run["metrics"].get(sort)
    better = 1 if higher_is_better(sort) else -1
    return (value is not None, better * (value or 0.0))


def _row(run: dict[str, Any], sort: str) -> list[str]:
    known = run["metrics"]
    shown = [name for name in dict.fromkeys([sort, "eval_loss", "bleu", "chrf"]) if known.get(name) is not None][:2]
    figures = ", ".join(f"{name} {format_number(known[name])}" for name in shown)
    size, finished = f"{run['bytes'] / 1e6:,.1f} MB", run["finished"][:16].replace("T", " ")
    return [run["path"], run["status"], run["objective"] or "?", run["model"] or "?", figures, size, finished]
