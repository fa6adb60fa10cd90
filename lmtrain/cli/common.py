"""Settings, options and the display of results that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lmtrain.api import Results
from lmtrain.cli.flags import canonical
from lmtrain.config.recipe import RECIPES
from lmtrain.errors import UsageError
from lmtrain.runtime.console import Console

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "token_normalize_func": canonical}

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel="Run")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress.", rich_help_panel="Run")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="Recipe to start from: a name or a path.", rich_help_panel="Run", show_default=False
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="section.key=value; train. reaches every TrainingArguments field. Repeatable.",
        rich_help_panel="Run",
        show_default=False,
        metavar="KEY=VALUE",
    ),
]


def show(results: Results, console: Console) -> None:
    """The table that ends a run or an evaluation; for a run, the next commands to type."""
    from lmtrain.runs import summary

    document = results.document
    title = f"{results.objective}: {short_name(document['model'])}"
    console.result(document, summary.summary(document), title, summary.signatures(document))
    if results.folder:
        hint = RECIPES[results.objective].SAMPLING_HINT
        console.note(summary.next_steps(results.objective, results.folder.path, hint))


def check_new(folder: Path) -> None:
    """Raise UsageError for a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output-dir {folder} exists and is not empty; name another folder")


def short_name(name: str) -> str:
    """The last part of a folder's path; a hub id whole."""
    return Path(name).resolve().name if Path(name).exists() else name
