"""The program `lmtrain`: its commands, and how it ends."""

import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from lmtrain.cli import recipes, saved_runs, sweep, tokenizer, train, use
from lmtrain.cli.common import SETTINGS, Json, Quiet
from lmtrain.cli.flags import with_flags
from lmtrain.config import shipped
from lmtrain.config.loading import objective_of, read_yaml
from lmtrain.config.options import Leaf, leaves
from lmtrain.config.recipe import RECIPES, GenerateRequest, chat_leaves, probe_leaves, untrained_leaves
from lmtrain.errors import LmtrainError, UsageError, visible
from lmtrain.runtime import cluster, group, signals, streams
from lmtrain.runtime.console import Console
from lmtrain.runtime.invocation import note_command
from lmtrain.runtime.processes import is_first_process, settle
from lmtrain.runtime.redaction import redact
from lmtrain.version import __version__


class Commands(TyperGroup):
    """A group whose commands get their flags only when they are called, so that its own `--help` is fast."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        # Typer wraps the function that it is given.
        build = FLAGGED.get(getattr(command.callback, "__wrapped__", None)) if command else None
        return name, build() if build else command, rest


class Program(Commands):
    """The program. An error that the user can fix ends it with one sentence and an exit code, not with a traceback."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        sys.excepthook = _print_redacted
        streams.install()
        cluster.adopt()
        group.watch()
        console = Console(main_process=is_first_process())
        given = list(sys.argv[1:] if args is None else args)
        note_command(given)
        try:
            streams.check_arguments(given)
            with signals.handle_signals():
                try:
                    return super().main(_expanded(given), *more, **options)
                finally:
                    sys.stdout.flush()  # where this fails, it is said
        except LmtrainError as error:
            _end(console, str(error), error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EACCES):
                raise
            _end(console, f"{visible(str(error.filename), 80)}: {error.strerror}", 3)
        except (MemoryError, RuntimeError) as error:
            # torch's own error is no MemoryError, and torch may not have been imported.
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            _end(console, f"out of memory; {LESS_MEMORY.get(next(iter(given), ''), TRAINING_WITH_LESS)}", 5)


LESS_MEMORY = {
    "eval": "use a smaller --eval-batch-size, a shorter --max-length or, for seq2seq, fewer --num-beams",
    "generate": "use fewer --num-beams and --max-new-tokens, or shorter prompts",
    "probe": "use a smaller --batch-size or a shorter --max-length",
    "merge": "a machine with more memory is needed",
    "tokenizer": "use a part of the data, as FILE#N",
}
"""Command -> what to do where memory is not enough."""

TRAINING_WITH_LESS = (
    "use smaller batches (--batch-size, --eval-batch-size), fewer --num-beams or a shorter --max-length"
)


def _end(console: Console, message: str, code: int) -> NoReturn:
    """Exit with the message; in a group of processes its launcher prints it, once."""
    if group.is_member():
        group.report(redact(message), code)
    else:
        console.error(message)
    sys.exit(code)


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without secrets: a library's message may repeat what it was given."""
    text = redact("".join(traceback.format_exception(kind, error, trace)))
    if group.is_member():
        group.report(text.strip().splitlines()[-1], 1, text)
    else:
        sys.stderr.write(text)


def _expanded(args: list[str]) -> list[str]:
    """`run RECIPE …` -> `OBJECTIVE --config RECIPE …`, and likewise `plan RECIPE …`. Raises UsageError, InputError."""
    if args[:1] not in (["run"], ["plan"]) or len(args) < 2 or args[1].startswith("-"):
        return args
    if args[0] == "plan" and args[1] in RECIPES:
        return args
    path = shipped.find(args[1])
    words = [objective_of(read_yaml(path), str(path)), "--config", str(path), *args[2:]]
    return words if args[0] == "run" else ["plan", *words]


app = typer.Typer(
    name="lmtrain",
    help="Train language models with a loss that is exact. Try: lmtrain run clm-quickstart",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

FLAGGED: dict[Any, Callable[[], TyperCommand]] = {}
"""The placeholder of a command -> the function that builds the command with its flags."""


def _add(
    name: str,
    command: Callable[..., None],
    options: Callable[[], tuple[Leaf, ...]],
    panel: str | None,
    to: typer.Typer,
) -> None:
    """Add a command whose flags are built from the declarations when it is called."""
    settings: dict[str, Any] = {"rich_help_panel": panel, "no_args_is_help": True, "context_settings": SETTINGS}

    def without_flags() -> None:
        """The placeholder of the command."""

    @cache
    def build() -> TyperCommand:
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name, **settings)(with_flags(command, options(), trains=panel != "Use"))
        built = typer.main.get_command(single)
        assert isinstance(built, TyperCommand)
        return built

    without_flags.__doc__ = command.__doc__
    to.command(name, **settings)(without_flags)
    FLAGGED[without_flags] = build


def _group(help_text: str, name: str) -> typer.Typer:
    group = typer.Typer(help=help_text, cls=Commands, no_args_is_help=True, context_settings=SETTINGS)
    app.add_typer(group, name=name, rich_help_panel="Look and prepare")
    return group


bench_app = _group("How fast a training would be here, and how much of the machine it uses.", "bench")
plan_app = _group(
    "What a training would take: steps, memory, the largest batch, disk; before it is started. Also: lmtrain plan RECIPE.",
    "plan",
)
preview_app = _group("Show what a model will see, token by token; trains nothing.", "preview")
app.add_typer(recipes.app, name="recipes", rich_help_panel="Look and prepare")
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel="Look and prepare")


@app.command(rich_help_panel="Train", context_settings={**SETTINGS, "allow_extra_args": True})
def run(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a recipe file.")],
) -> None:
    """Train as a recipe says; any flag of its objective may follow and overrides it.

    With --smoke it is tried out in seconds, offline: a small model of the same architecture, made-up rows.
    """
    raise UsageError("name the recipe first: lmtrain run RECIPE [flags]")


for _objective, _recipe_class in RECIPES.items():
    _add(_objective, train.training(_recipe_class), partial(leaves, _recipe_class), "Train", app)
    _add(_objective, train.benching(_recipe_class), partial(leaves, _recipe_class), None, bench_app)
    _add(_objective, train.planning(_recipe_class), partial(leaves, _recipe_class), None, plan_app)
    _add(_objective, train.previewing(_recipe_class), partial(leaves, _recipe_class), None, preview_app)
_add("eval", use.evaluate, lambda: untrained_leaves(*RECIPES.values()), "Use", app)
_add("generate", use.generate, lambda: untrained_leaves(GenerateRequest), "Use", app)
_add("chat", use.chat, chat_leaves, "Use", app)
_add("probe", use.probe, probe_leaves, "Use", app)
app.command("sweep", rich_help_panel="Train", no_args_is_help=True, context_settings=SETTINGS)(sweep.sweep)
app.command("compare", rich_help_panel="Look and prepare", no_args_is_help=True, context_settings=SETTINGS)(
    saved_runs.compare
)
app.command("runs", rich_help_panel="Look and prepare", context_settings=SETTINGS)(saved_runs.runs)
app.command("push", rich_help_panel="Use", no_args_is_help=True, context_settings=SETTINGS)(saved_runs.push)
app.command("merge", rich_help_panel="Use", no_args_is_help=True, context_settings=SETTINGS)(use.merge)


@app.command(rich_help_panel="Look and prepare", context_settings=SETTINGS)
def doctor(
    processes: Annotated[
        int, typer.Option("--processes", min=2, metavar="N", help="Processes that share a step, in DDP and in FSDP2.")
    ] = 2,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Environment and devices, and whether loss and resume are exact on this machine."""
    from importlib.util import find_spec

    from lmtrain.runtime.libraries import loading_libraries

    if find_spec("torch") is None:
        raise UsageError("torch is not installed; pip install lmtrain brings it")
    console = Console(quiet=quiet, as_json=json)
    settle()
    with loading_libraries(console):
        from lmtrain.commands import doctor as examining
    report = examining.report(processes, console)
    examining.show(report, console)
    raise typer.Exit(0 if report["exact"] else 1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if show:
        sys.stdout.write(f"lmtrain {__version__}\n")
        raise typer.Exit
