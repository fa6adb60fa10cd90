"""`lmtrain recipes`: the recipes that come with lmtrain."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lmtrain import api
from lmtrain.cli.common import SETTINGS, Json, Quiet
from lmtrain.config import shipped
from lmtrain.config.resolution import load_recipe
from lmtrain.config.values import Document
from lmtrain.errors import GateFailed, LmtrainError, StorageError, UsageError
from lmtrain.runtime.console import Console, format_number
from lmtrain.runtime.redaction import redact

app = typer.Typer(help="The recipes that come with lmtrain.", context_settings=SETTINGS)


@app.callback(invoke_without_command=True)
def recipes_default(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        recipes_list()


@app.command("list")
def recipes_list(json: Json = False) -> None:
    """All recipes, with what each is."""
    known = {path.stem: shipped.headline(path) for path in shipped.shipped()}
    Console(as_json=json).result(known, list(known.items()), title="lmtrain run …")


@app.command("test")
def recipes_test(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Shipped recipes or recipe files; all shipped ones by default.", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try recipes out in seconds each, offline, as lmtrain run NAME --smoke does; exit code 4 where one fails."""
    paths = [shipped.find(name) for name in names] if names else shipped.shipped()
    console = Console(quiet=quiet, as_json=json)
    tried = {}
    for number, path in enumerate(paths, 1):
        with console.working(f"{number}/{len(paths)} {path.stem}"):
            tried[path.stem] = _tried(path)
        outcome = tried[path.stem]["failed"] or f"{tried[path.stem]['seconds']:.1f} s"
        console.note(f"{number}/{len(paths)} {path.stem}: {outcome}")
    rows = [(name, outcome["failed"] or _outcome_text(outcome)) for name, outcome in tried.items()]
    console.result(tried, rows, title="lmtrain recipes test")
    if failed := [name for name, outcome in tried.items() if outcome["failed"]]:
        raise GateFailed(f"{len(failed)} of {len(tried)} recipes fail: {', '.join(failed)}")


def _tried(path: Path) -> Document:
    """The outcome of a recipe: {"failed": a sentence or None, "seconds": …, "objective": …, losses, metrics}."""
    began = time.monotonic()
    outcome: Document = {"failed": None}
    try:
        results = api.smoke(load_recipe(path))
        results.enforce_gates()
        train = results.train
        outcome |= {"objective": results.objective, "first_loss": train["first_loss"], "last_loss": train["last_loss"]}
        outcome |= {"metrics": results.metrics}
    except LmtrainError as error:
        outcome["failed"] = str(error).splitlines()[0]
    except Exception as error:  # a fault of ours is found here, and the other recipes are tried all the same
        outcome["failed"] = redact(f"{type(error).__name__}: {error}".splitlines()[0])
    return outcome | {"seconds": round(time.monotonic() - began, 1)}


def _outcome_text(outcome: Document) -> str:
    metrics = [f"{name} {format_number(outcome['metrics'][name])}" for name in list(outcome["metrics"])[:1]]
    return " · ".join(
        [f"{outcome['seconds']:.1f} s", f"loss {outcome['first_loss']:.2f} → {outcome['last_loss']:.2f}", *metrics]
    )


@app.command("show")
def recipes_show(name: str) -> None:
    """Print a recipe."""
    sys.stdout.write(shipped.find(name).read_text(encoding="utf-8"))


@app.command("copy")
def recipes_copy(
    name: str,
    to: Annotated[Path | None, typer.Argument(help="Where to; the same name here by default.")] = None,
) -> None:
    """Copy a recipe here, to be changed and run with lmtrain run FILE."""
    source = shipped.find(name)
    target = to or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UsageError(f"{target} exists; name another file")
    try:
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from None
    Console().note(f"{target} · next: lmtrain run {target}")
