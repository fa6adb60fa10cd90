"""`lmtrain clm`, `mlm`, `seq2seq`, and what looks at such a training: `preview`, `bench`."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lmtrain import api
from lmtrain.cli import launch
from lmtrain.cli.common import Assignments, Config, Json, Quiet, show
from lmtrain.cli.flags import typed
from lmtrain.config import model_checks
from lmtrain.config.assertions import name_of
from lmtrain.config.loading import to_yaml
from lmtrain.config.options import ONLY_TYPED
from lmtrain.config.recipe import Recipe
from lmtrain.config.resolution import resolve_recipe
from lmtrain.config.values import parse_size
from lmtrain.errors import UsageError
from lmtrain.evaluation.gates import enforce, judge_values
from lmtrain.runtime.console import Console
from lmtrain.runtime.libraries import loading_libraries, set_environment
from lmtrain.runtime.processes import is_first_process, settle
from lmtrain.runtime.redaction import redact_document

if TYPE_CHECKING:
    from lmtrain.data.corpus import Corpus


def training(recipe_class: type[Recipe]) -> Callable[..., None]:
    def command(
        ctx: typer.Context,
        config: Config = None,
        set_: Assignments = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.", rich_help_panel="Run")
        ] = False,
        smoke: Annotated[
            bool, typer.Option("--smoke", help="Try it out in seconds: a small model, made-up rows.", hidden=True)
        ] = False,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        recipe = resolve_recipe(recipe_class, config, set_ or [], typed(ctx, flags))
        console = Console(quiet=quiet, as_json=json)
        present = partial(show, console=console)
        if dry_run:
            _print_recipe(recipe)
            return
        if smoke:
            results = _smoke(recipe, console, present)
        elif launch.wanted(recipe.run):
            launch.check_input([*recipe.data.train, *recipe.data.eval])  # before it is read
            results = api.check(recipe, console, present) or _relaunch(recipe)
        else:
            results = api.train(launch.restarted(recipe), console=console, show=present)
        if console.main_process:
            results.enforce_gates()

    command.__doc__ = recipe_class.__doc__
    return command


def _print_recipe(recipe: Recipe) -> None:
    document = recipe.model_dump(mode="json", exclude_none=True)
    for section, name in ONLY_TYPED:
        document[section].pop(name, None)
    sys.stdout.write(to_yaml(redact_document(document)))


def _smoke(recipe: Recipe, console: Console, present: api.Show) -> api.Results:
    began, saved = time.monotonic(), recipe.run.output_dir is not None
    results = api.smoke(recipe, console=console, show=present)
    console.note(f"smoke: it runs ({time.monotonic() - began:.0f} s){'' if saved else '; nothing is saved'}")
    return results


def _relaunch(recipe: Recipe) -> NoReturn:
    launch.relaunch(recipe.run, [*recipe.data.train, *recipe.data.eval], sys.argv[1:])


def _checked_corpus(recipe: Recipe, console: Console, weights: bool) -> "Corpus":
    """The data of a recipe whose model is checked, with its `weights` where they are needed. Raises as training does."""
    from lmtrain.training.start import open_corpus

    set_environment(recipe.run.offline, recipe.run.num_proc)
    model_checks.check_model(recipe.objective, recipe.model, weights=weights)
    return open_corpus(recipe, console)


def previewing(recipe_class: type[Recipe]) -> Callable[..., None]:
    def command(
        ctx: typer.Context,
        batches: Annotated[
            int, typer.Option("--batches", min=1, metavar="N", help="Batches to show.", rich_help_panel="Preview")
        ] = 1,
        full: Annotated[
            bool, typer.Option("--full", help="Show long rows to their end.", rich_help_panel="Preview")
        ] = False,
        explain: Annotated[
            bool, typer.Option("--explain", help="Explain what is being learnt.", rich_help_panel="Preview")
        ] = False,
        config: Config = None,
        set_: Assignments = None,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        recipe = resolve_recipe(recipe_class, config, set_ or [], typed(ctx, flags))
        console = Console(quiet=quiet, as_json=json, main_process=is_first_process())
        corpus = _checked_corpus(recipe, console, weights=False)
        with loading_libraries(console):
            from lmtrain.commands.preview.preview import preview
        preview(recipe, corpus, batches, explain, full, console)

    command.__doc__ = (
        f"{recipe_class.__doc__}\n\n"
        "Shows the first batches as training would give them to the model, by the same flags; trains nothing."
    )
    return command


def benching(recipe_class: type[Recipe]) -> Callable[..., None]:
    def command(
        ctx: typer.Context,
        seconds: Annotated[
            float, typer.Option("--seconds", min=1, metavar="S", help="How long to train.", rich_help_panel="Bench")
        ] = 20.0,
        config: Config = None,
        set_: Assignments = None,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        recipe = resolve_recipe(recipe_class, config, set_ or [], typed(ctx, flags))
        console = Console(quiet=quiet, as_json=json)
        settle()
        if launch.wanted(recipe.run):
            raise UsageError("bench measures one process; leave out --num-processes and --accelerate-config")
        corpus = _checked_corpus(recipe, console, weights=True)
        with loading_libraries(console):
            from lmtrain.commands import bench
        bench.show(bench.bench(recipe, corpus, seconds, console), console)

    command.__doc__ = (
        f"{recipe_class.__doc__}\n\n"
        "Takes some steps of the training that the same flags describe, and reports how fast it is and how long all of "
        "it would take; keeps nothing."
    )
    return command


def planning(recipe_class: type[Recipe]) -> Callable[..., None]:
    def command(
        ctx: typer.Context,
        memory: Annotated[
            str | None,
            typer.Option(
                "--memory",
                help="Memory for the largest batch: 24GB. Default: what is free here.",
                metavar="TEXT",
                rich_help_panel="Plan",
                show_default=False,
            ),
        ] = None,
        measure: Annotated[
            bool, typer.Option("--measure", help="Also train for 5 seconds, to tell the time.", rich_help_panel="Plan")
        ] = False,
        config: Config = None,
        set_: Assignments = None,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        recipe = resolve_recipe(recipe_class, config, set_ or [], typed(ctx, flags))
        limit = parse_size(memory, "--memory") if memory else None
        gates = [expression for expression in recipe.gates.assertions if name_of(expression).startswith("plan.")]
        console = Console(quiet=quiet, as_json=json)
        settle()
        corpus = _checked_corpus(recipe, console, weights=measure)
        with loading_libraries(console):
            from lmtrain.commands import plan as planned
        found = planned.plan(recipe, corpus, limit, console)
        if measure:
            from lmtrain.commands import bench

            found["seconds"] = bench.bench(recipe, corpus, SECONDS_TO_MEASURE, console)["training_seconds"]
        found["gates"] = judge_values(gates, {"plan": found})
        planned.show(found, console)
        enforce(found)

    command.__doc__ = (
        f"{recipe_class.__doc__}\n\n"
        "Tells steps, memory by part, the largest batch that fits and disk space of the training that the same flags describe; "
        "reads no weights. A gate such as --assert 'plan.peak_memory_bytes<8e9' ends it with exit code 4."
    )
    return command


SECONDS_TO_MEASURE = 5.0
