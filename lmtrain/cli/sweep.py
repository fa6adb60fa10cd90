"""`lmtrain sweep`."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmtrain.cli.common import Json, Quiet
from lmtrain.config import shipped
from lmtrain.config.resolution import load_recipe
from lmtrain.errors import UsageError
from lmtrain.metrics import higher_is_better
from lmtrain.runtime.console import Console, format_number

if TYPE_CHECKING:
    from lmtrain.commands.sweep.sweep import Sweep

Texts = list[str] | None


def sweep(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a recipe file.")],
    grid: Annotated[
        Texts, typer.Option("--grid", help="Values to try: train.learning_rate=1e-4,3e-4. Repeatable.", metavar="TEXT")
    ] = None,
    ranges: Annotated[
        Texts,
        typer.Option(
            "--range", help="Range to draw from: train.learning_rate=1e-5:1e-3:log. Repeatable.", metavar="TEXT"
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search", help="grid, random or tpe (needs optuna). Default: random with --range.", metavar="NAME"
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Combinations to draw, for random and tpe.", metavar="N")
    ] = 12,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds for each combination.", metavar="N")] = 1,
    halving: Annotated[
        int | None,
        typer.Option(
            "--halving",
            min=2,
            help="Compare early, and let one in N go on: successive halving.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Metric to rank by. Default: the recipe's --best-metric.", metavar="TEXT"),
    ] = None,
    set_: Annotated[
        Texts, typer.Option("--set", help="section.key=value for all trials. Repeatable.", metavar="KEY=VALUE")
    ] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", help="GPUs, one trial on each: 0,1,2. Default: all.", metavar="TEXT")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.", metavar="N")] = 42,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder. Default: sweeps/<recipe>.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try a recipe with different settings, each as a run of its own, and rank them.

    The same command continues a sweep that was stopped or killed.
    """
    from lmtrain.commands.sweep.space import parse_grid, parse_ranges
    from lmtrain.commands.sweep.sweep import Sweep

    console = Console(quiet=quiet, as_json=json)
    path = shipped.find(recipe)
    base = load_recipe(recipe)
    chosen = metric or base.eval.best_metric
    if higher_is_better(chosen) is None:
        raise UsageError(f"--metric {chosen}: not a metric of which it is known whether higher is better")
    one = Sweep(
        folder=output_dir or Path("sweeps") / path.stem,
        objective=base.objective,
        recipe=recipe,
        assignments=set_ or [],
        metric=chosen,
        grid=parse_grid(grid or []),
        ranges=parse_ranges(ranges or []),
        search=search or ("random" if ranges else "grid"),
        trials=trials,
        seeds=seeds,
        eta=halving,
        seed=seed,
        devices=_devices(devices),
        console=console,
        base_seed=base.train.seed,
    )
    _check(one)
    one.check()
    _show(one.run(), one, console)


def _check(sweep: "Sweep") -> None:
    """Raise UsageError for options that contradict each other."""
    if sweep.search not in ("grid", "random", "tpe"):
        raise UsageError(f"--search {sweep.search}: choose grid, random or tpe")
    if not sweep.grid and not sweep.ranges:
        raise UsageError("what should be tried? --grid train.learning_rate=1e-4,3e-4, or --range NAME=LOW:HIGH")
    if sweep.search == "grid" and sweep.ranges:
        raise UsageError("--range needs --search random or tpe; a grid has values: --grid")
    if twice := sorted(sweep.grid.keys() & sweep.ranges.keys()):
        raise UsageError(f"{twice[0]}: in --grid and in --range; choose one")
    if sweep.eta and sweep.search == "tpe":
        raise UsageError("--halving: with --search grid or random only")


def _devices(given: str | None) -> list[str | None]:
    """The GPUs that each take a trial at a time; [None] where there is none."""
    visible = given if given is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device.strip() for device in visible.split(",") if device.strip()]
        if given is not None and not named:
            raise UsageError(f"--devices {given}: names no device; write it as 0,1")
        return [*named] or [None]
    if shutil.which("nvidia-smi") is None:
        return [None]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [str(number) for number, line in enumerate(listed) if line.startswith("GPU")] or [None]


def _show(document: dict[str, Any], sweep: "Sweep", console: Console) -> None:
    names = list(document["ranking"][0]["settings"])
    header = ["", *(name.rpartition(".")[2] for name in names), document["metric"], "seeds", "against the best"]
    rows = []
    for place, row in enumerate(document["ranking"], 1):
        spread = f" ± {format_number(row['deviation'])}" if row["deviation"] is not None else ""
        noise = {True: "within seed noise", False: "worse", None: ""}[row["within_noise"] if place > 1 else None]
        settings = [str(row["settings"][name]) for name in names]
        rows.append([str(place), *settings, f"{format_number(row['mean'])}{spread}", str(len(row["values"])), noise])
    below = [f"the best recipe: {document['best']['recipe']}; lmtrain run {document['best']['recipe']}"]
    if others := [trial for trial in document["trials"] if trial["status"] != "completed"]:
        failed = sum(trial["status"] == "failed" for trial in others)
        below.append(
            f"{len(others) - failed} trials were stopped early by --halving, {failed} failed; sweep.json has them"
        )
    if sweep.seeds == 1:
        below.append("one seed each: small differences may be chance; --seeds 3 tells")
    console.result(document, rows, f"sweep of {sweep.recipe}", below, header)
