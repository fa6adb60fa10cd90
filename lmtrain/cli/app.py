"""The commands. Not one line of training logic: arguments in, a call, a result out."""

import errno
import functools
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from lmtrain import __version__
from lmtrain.cli.options import canonical, typed, with_flags
from lmtrain.commands.probe import figures
from lmtrain.config import model_checks, shipped
from lmtrain.config.loading import (
    build,
    from_assignments,
    from_environment,
    in_sections,
    merge,
    objective_of,
    read_yaml,
    to_yaml,
)
from lmtrain.config.options import ONLY_TYPED, Leaf, leaves
from lmtrain.config.recipe import RECIPES, GenerateRequest, ProbeRequest, Recipe, probe_leaves, untrained_leaves
from lmtrain.config.values import Document
from lmtrain.errors import GateFailed, LmtrainError, StorageError, UsageError, visible
from lmtrain.evaluation import gates
from lmtrain.preprocessing import train_tokenizer
from lmtrain.runs import summary
from lmtrain.runtime import processes, signals
from lmtrain.runtime.console import Console, Silent, figure
from lmtrain.runtime.redaction import in_document, redacted

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": canonical}

app = typer.Typer(
    name="lmtrain",
    help="Train language models with a loss that is exact. Try: lmtrain run clm-quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
recipes_app = typer.Typer(help="The recipes that come with lmtrain.", context_settings=SETTINGS)
tokenizer_app = typer.Typer(help="Train a tokenizer, or see how one suits a text.", no_args_is_help=True,
                            context_settings=SETTINGS)  # fmt: skip
preview_app = typer.Typer(help="Show what a model will see, token by token; trains nothing.", no_args_is_help=True,
                          context_settings=SETTINGS)  # fmt: skip
bench_app = typer.Typer(help="How fast a training would be here, and how much of the machine it uses.", no_args_is_help=True,
                        context_settings=SETTINGS)  # fmt: skip
app.add_typer(bench_app, name="bench", rich_help_panel="Look and prepare")
app.add_typer(preview_app, name="preview", rich_help_panel="Look and prepare")
app.add_typer(recipes_app, name="recipes", rich_help_panel="Look and prepare")
app.add_typer(tokenizer_app, name="tokenizer", rich_help_panel="Look and prepare")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel="Run")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress.", rich_help_panel="Run")]


Config = Annotated[
    str | None, typer.Option("--config", "-c", help="Recipe to start from: a name or a path.", rich_help_panel="Run",
                             show_default=False)
]  # fmt: skip
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value; train. reaches every TrainingArguments field. Repeatable.",
                 rich_help_panel="Run", show_default=False, metavar="KEY=VALUE"),
]  # fmt: skip


def says_what_is_wrong(command: Callable[..., None]) -> Callable[..., None]:
    """Whatever the user can put right is one sentence on stderr and an exit code, never a traceback."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        from lmtrain.runtime.processes import is_first_process

        console = Console(main_process=is_first_process())
        try:
            with signals.listening():
                command(*arguments, **options)
        except LmtrainError as error:
            console.error(str(error))
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EACCES):
                raise
            console.error(f"{visible(str(error.filename), 80)}: {error.strerror}")
            raise typer.Exit(3) from None
        except (MemoryError, RuntimeError) as error:
            # torch's own is no MemoryError, and torch may not have been imported.
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            console.error(
                "out of memory; use smaller batches (--eval-batch-size, --batch-size), fewer beams or a shorter --max-length"
            )
            raise typer.Exit(5) from None

    return wrapped


# --- clm, mlm, seq2seq -----------------------------------------------------------------------------------------------
def _training(recipe_class: type[Recipe]) -> Callable[..., None]:
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
        recipe = _resolve(recipe_class, config, set_ or [], typed(ctx, flags))
        if dry_run:
            document = recipe.model_dump(mode="json", exclude_none=True)
            for section, name in ONLY_TYPED:
                document[section].pop(name, None)
            sys.stdout.write(to_yaml(in_document(document)))
            return
        console = Console(quiet=quiet, as_json=json)
        if smoke:
            _smoke(recipe, console)
        else:
            _train(recipe, console)

    command.__doc__ = recipe_class.__doc__
    return command


def _resolve(recipe_class: type[Recipe], config: str | None, assignments: list[str], flags: Document) -> Recipe:
    """Flag > `--set` > environment > recipe > default."""
    where, document = "the command line", {}
    if config is not None:
        path = shipped.find(config)
        where, document = str(path), read_yaml(path)
        objective = objective_of(document, where)
        if RECIPES[objective] is not recipe_class:
            raise UsageError(f"{where}: a recipe for {objective}; use lmtrain {objective} or lmtrain run")
        document = in_sections(document, recipe_class, where)
    merged = merge(document, from_environment(recipe_class), from_assignments(assignments, recipe_class), flags)
    return build(recipe_class, merged, where)


def _train(recipe: Any, console: Console, kept: bool = True) -> Document:
    """Check what can be checked in milliseconds, read the data, and only then import what takes seconds.

    The results; where the run folder is not `kept`, nothing is said of it.
    """
    from lmtrain.cli import launch
    from lmtrain.runs import checkpoint, compatibility, lock, run_folder

    _environment(recipe.run.offline, recipe.run.num_proc)
    console.main_process = processes.is_first_process()
    baseline = _check_gates(recipe)
    if recipe.run.resume and recipe.train.max_steps == 0:
        raise UsageError("--max-steps 0 only evaluates, so there is nothing to --resume")
    model_checks.check_model(recipe.objective, recipe.model)
    folder = run_folder.RunFolder(Path(recipe.run.output_dir or "."))
    continued = checkpoint.Continued()
    with ExitStack() as stack:
        if processes.is_first_process():
            folder = run_folder.place(recipe.run, recipe.objective, recipe.model.name)
            run_folder.check_writable(folder)
            if not launch.wanted(recipe.run):
                stack.enter_context(lock.held(folder.path))
                checkpoint.clear(folder.checkpoints)
            run_folder.check_free(folder, recipe.run)
            continued = checkpoint.to_resume(recipe.run.resume, folder.checkpoints)
            for line in compatibility.check_settings(continued.identity, recipe):
                console.warn(line)
            done = run_folder.finished(folder) if recipe.run.resume == "auto" else None
            if done and not run_folder.ends_otherwise(folder, recipe):
                console.note("the run is completed already; these are its results")
                _conclude(recipe, done, baseline, console, folder)
                return done
        corpus = _corpus(recipe, console)
        if launch.wanted(recipe.run):
            del corpus  # read to be checked; every process reads for itself
            raise typer.Exit(launch.relaunch(recipe.run, [*recipe.data.train, *recipe.data.eval], sys.argv[1:]))

        with _loading_libraries(console):
            from lmtrain.training import run
        results = run.train(recipe, corpus, folder, continued, console)
        if console.main_process:
            _conclude(recipe, results, baseline, console, folder if kept else None)
        return results


def _smoke(recipe: Any, console: Console) -> Document:
    """Train as the recipe says, but small, offline and in seconds; the results."""
    _environment(offline=True)
    began = time.monotonic()
    with _loading_libraries(console):
        from lmtrain.commands import smoke
    kept = recipe.run.output_dir is not None
    with smoke.shrunk(recipe, console) as small:
        results = _train(small, console, kept)
    console.note(f"smoke: it runs ({time.monotonic() - began:.0f} s){'' if kept else '; nothing of it is kept'}")
    return results


def _check_gates(recipe: Any) -> Document | None:
    """The baseline, after what can be known of the gates before any work. Raises UsageError, InputError."""
    from lmtrain.runs import run_folder

    run_folder.check_can_be_written(recipe.eval.predictions, "--predictions")
    return _baseline(recipe.gates, recipe.objective)


def _baseline(section: Any, objective: str) -> Document | None:
    from lmtrain.runs import run_folder

    run_folder.check_can_be_written(section.junit, "--junit")
    return gates.read_baseline(section.baseline, objective)


def _conclude(recipe: Any, results: Document, baseline: Document | None, console: Console, folder: Any = None) -> None:
    """Judge and show the results, which are shown whatever the gates say; the run's `folder` keeps what became of them.

    Raises GateFailed.
    """
    written = results["gates"]
    try:
        gates.settle(recipe.gates, results, baseline)
        if folder and results["gates"] != written:
            folder.finish(results)
    finally:
        title = f"{recipe.objective}: {_short(recipe.model.name)}"
        console.result(results, summary.summary(results), title, summary.signatures(results))
    if folder:
        console.note(summary.next_steps(recipe.objective, folder))
    gates.enforce(results)


def _check_new(folder: Path) -> None:
    """Raise UsageError for a folder that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output-dir {folder} is there already; name another folder")


def _short(name: str) -> str:
    """The last part of a folder's path, a hub id in full."""
    return Path(name).resolve().name if Path(name).exists() else name


def _corpus(recipe: Any, console: Console) -> Any:
    """The recipe's data, read and found to be sound. Raises InputError."""
    from lmtrain.data.cache import Cache
    from lmtrain.data.corpus import Corpus

    corpus = Corpus(recipe.data, recipe.train.seed, Cache.of(recipe.run, console))
    with console.working("reading the data"):
        corpus.check()
    return corpus


@contextmanager
def _loading_libraries(console: Console) -> Iterator[None]:
    """What is imported in here may take seconds.

    Python looks for garbage ever again while modules make a million objects, all of which stay: a third of the time. So
    it does not look, and leaves them out for good.
    """
    first = "torch" not in sys.modules
    with console.working("loading torch and transformers"):
        gc.disable()
        try:
            yield
            from lmtrain.runtime import device
        finally:
            gc.enable()
    if first:
        gc.freeze()
    device.quiet_libraries()


def _environment(offline: bool, threads: int | None = None) -> None:
    """Before anything imports the hub's client or the tokenizers, which read it once."""
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
    if offline or os.environ.get("LMTRAIN_OFFLINE", "").lower() in ("1", "true"):
        for library in ("HUB", "DATASETS", "EVALUATE"):
            os.environ[f"HF_{library}_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Rows are tokenised before workers are forked; the warning about it would be printed once a worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@app.command(
    rich_help_panel="Train",
    context_settings={**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True,
                      "allow_interspersed_args": False},
)  # fmt: skip
@says_what_is_wrong
def run(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a recipe file.")],
) -> None:
    """Train as a recipe says; any flag of its objective may follow and overrides it.

    With --smoke it is tried out in seconds, offline: a small model of the same architecture, made-up rows.
    """
    path = shipped.find(recipe)
    objective = objective_of(read_yaml(path), str(path))
    typer.main.get_command(app).main(
        [objective, "--config", str(path), *ctx.args], prog_name="lmtrain", standalone_mode=True
    )


# --- preview ---------------------------------------------------------------------------------------------------------
def _previewing(recipe_class: type[Recipe]) -> Callable[..., None]:
    def command(
        ctx: typer.Context,
        batches: Annotated[
            int, typer.Option("--batches", min=1, metavar="N", help="Batches to show.", rich_help_panel="Preview")
        ] = 1,
        full: Annotated[
            bool, typer.Option("--full", help="Long rows to their end.", rich_help_panel="Preview")
        ] = False,
        explain: Annotated[
            bool, typer.Option("--explain", help="Say what is being learnt.", rich_help_panel="Preview")
        ] = False,
        config: Config = None,
        set_: Assignments = None,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        recipe = _resolve(recipe_class, config, set_ or [], typed(ctx, flags))
        _preview(recipe, batches, explain, full, Console(quiet=quiet, as_json=json))

    command.__doc__ = (
        f"{recipe_class.__doc__}\n\n"
        "Shows the first batches as training would give them to the model, by the same flags; trains nothing."
    )
    return command


def _preview(recipe: Any, batches: int, explain: bool, full: bool, console: Console) -> None:
    """As far as training goes before its first step, by the configuration and the tokenizer alone."""
    _environment(recipe.run.offline, recipe.run.num_proc)
    console.main_process = processes.is_first_process()
    model_checks.check_model(recipe.objective, recipe.model, weights=False)
    corpus = _corpus(recipe, console)
    with _loading_libraries(console):
        from lmtrain.commands.preview import preview
    preview.preview(recipe, corpus, batches, explain, full, console)


# --- bench -----------------------------------------------------------------------------------------------------------
def _benching(recipe_class: type[Recipe]) -> Callable[..., None]:
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
        recipe = _resolve(recipe_class, config, set_ or [], typed(ctx, flags))
        _bench(recipe, seconds, Console(quiet=quiet, as_json=json))

    command.__doc__ = (
        f"{recipe_class.__doc__}\n\n"
        "Takes some steps of the training that the same flags describe, and tells how fast it is and how long all of it "
        "would take; keeps nothing."
    )
    return command


def _bench(recipe: Any, seconds: float, console: Console) -> None:
    """As training goes, but for evaluations, saves and the end."""
    from lmtrain.cli import launch

    _environment(recipe.run.offline, recipe.run.num_proc)
    if launch.wanted(recipe.run):
        raise UsageError("bench measures one process; leave out --num-processes and --accelerate-config")
    model_checks.check_model(recipe.objective, recipe.model)
    corpus = _corpus(recipe, console)
    with _loading_libraries(console):
        from lmtrain.commands import bench
    bench.show(bench.bench(recipe, corpus, seconds, console), console)


# --- eval, generate, probe --------------------------------------------------------------------------------------------
Objective = Annotated[
    str | None,
    typer.Option("--objective", help="clm, mlm or seq2seq. Default: what the model was made for.", show_default=False,
                 rich_help_panel="Model", metavar="NAME"),
]  # fmt: skip


Against = Annotated[
    str | None,
    typer.Option("--against", help="predictions.jsonl of another model: is the difference significant?",
                 show_default=False, rich_help_panel="Evaluation", metavar="FILE"),
]  # fmt: skip


def _evaluate(
    ctx: typer.Context,
    objective: Objective = None,
    against: Against = None,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Score a model on data: exact loss, perplexity, metrics of text; gates for CI; predictions.

    A run folder is scored by the settings of the run, and on what it held out if no --data are given.
    """
    from lmtrain.cli import launch
    from lmtrain.commands import saved_model
    from lmtrain.data import corpus, reading

    console = Console(quiet=quiet, as_json=json, main_process=processes.is_first_process())
    given = typed(ctx, flags)
    _environment(given.get("run", {}).get("offline"))
    recipe, data = saved_model.to_score(given, objective)
    model_checks.check_model(recipe.objective, recipe.model)
    baseline = _check_gates(recipe)
    with console.working("reading the data"):
        rows = (
            reading.load(data, recipe.data, "validation") if data else corpus.held_out(recipe.data, recipe.train.seed)
        )
    if launch.wanted(recipe.run):
        raise typer.Exit(launch.relaunch(recipe.run, data or [], sys.argv[1:]))

    with _loading_libraries(console):
        from lmtrain.commands import eval
    results = eval.evaluate(recipe, rows, against, console)
    if console.main_process:
        _conclude(recipe, results, baseline, console)


def _generate(
    ctx: typer.Context,
    objective: Objective = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON line for each prompt.", rich_help_panel="Run")
    ] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Try a model: go on with a text (clm), fill its masks (mlm), transform it (seq2seq)."""
    from lmtrain.commands import saved_model
    from lmtrain.data import prompts

    console = Console(quiet=quiet, as_json=json)
    given = typed(ctx, flags)
    _environment(given.get("run", {}).get("offline"))
    request, objective, kind = saved_model.to_ask(given, objective)
    model_checks.check_model(objective, request.model)
    asked, empty = prompts.read(request.data)
    if empty:
        console.warn(f"{empty:,} empty prompts are left out")
    with _loading_libraries(console):
        from lmtrain.commands import generate
    generate.generate(request, objective, asked, kind, console)


def _probe(ctx: typer.Context, json: Json = False, quiet: Quiet = False, **flags: Any) -> None:
    """See what encoders are good for: how well their states tell the labels of texts, or the tags of words, apart.

    The encoder is frozen and a logistic regression learnt on top, or with --fine-tune both are trained.
    """
    from lmtrain.commands.probe import labels

    console = Console(quiet=quiet, as_json=json)
    request = build(ProbeRequest, merge(from_environment(ProbeRequest), typed(ctx, flags)), "the command line")
    _environment(request.run.offline)
    baseline = _baseline(request.gates, "probe")
    for model in request.encoders():
        model_checks.check_encoder(model)
    with console.working("reading the data"):
        sides = labels.sides(request.data, request.probe.seed, request.gates.assertions)
    with _loading_libraries(console):
        from lmtrain.commands.probe import probe
    results = probe.probe(request, sides, console)
    try:
        gates.settle(request.gates, results, baseline)
    finally:
        header, rows = figures.table(results, [_short(name) for name in request.model.name])
        console.result(results, rows, f"probe: {results['data']['kind']} rows", summary.signatures(results), header)
    gates.enforce(results)


def _add_command(
    name: str, command: Callable[..., None], options: tuple[Leaf, ...], panel: str | None, to: typer.Typer = app
) -> None:
    """A command with flags made from the declarations."""
    with_flags(command, options, trains=panel != "Use")
    wrapped = says_what_is_wrong(command)
    wrapped.__signature__ = command.__signature__  # type: ignore[attr-defined]
    to.command(name, rich_help_panel=panel, no_args_is_help=True, context_settings=SETTINGS)(wrapped)


for _recipe_class in RECIPES.values():
    _name = _recipe_class.model_fields["objective"].default
    _add_command(_name, _training(_recipe_class), leaves(_recipe_class), "Train")
    _add_command(_name, _benching(_recipe_class), leaves(_recipe_class), None, bench_app)
    _add_command(_name, _previewing(_recipe_class), leaves(_recipe_class), None, preview_app)
_add_command("eval", _evaluate, untrained_leaves(*RECIPES.values()), "Use")
_add_command("generate", _generate, untrained_leaves(GenerateRequest), "Use")
_add_command("probe", _probe, probe_leaves(), "Use")


@app.command("merge", rich_help_panel="Use", no_args_is_help=True, context_settings=SETTINGS)
@says_what_is_wrong
def merge_adapter(
    adapter: Annotated[str, typer.Argument(help="Run folder of a training with --lora, or another LoRA adapter.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write.", show_default=False)],
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the hub for the base.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the base.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make one model of a LoRA adapter and its base."""
    from lmtrain.commands import saved_model
    from lmtrain.config.model import Model

    _environment(offline)
    model_checks.check_is_adapter(adapter)
    _check_new(output_dir)
    model = Model(name=adapter, trust_remote_code=trust_remote_code)
    objective = saved_model.objective_of_model(model)
    model_checks.check_model(objective, model)
    console = Console(quiet=quiet)
    with _loading_libraries(console):
        from lmtrain.commands import merge as merging
    merging.merge(model, objective, output_dir, console)


# --- recipes ---------------------------------------------------------------------------------------------------------
@recipes_app.callback(invoke_without_command=True)
def recipes_default(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        recipes_list()


@recipes_app.command("list")
@says_what_is_wrong
def recipes_list(json: Json = False) -> None:
    """All recipes, with what each is."""
    known = {path.stem: shipped.headline(path) for path in shipped.shipped()}
    Console(as_json=json).result(known, list(known.items()), title="lmtrain run …")


@recipes_app.command("test")
@says_what_is_wrong
def recipes_test(
    names: Annotated[list[str] | None, typer.Argument(help="Shipped recipes or recipe files; all shipped ones by default.",
                                                      show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Try recipes out in seconds each, offline, as lmtrain run NAME --smoke does; exit code 4 where one fails."""
    paths = [shipped.find(name) for name in names] if names else shipped.shipped()
    console = Console(quiet=quiet, as_json=json)
    tried = {}
    for number, path in enumerate(paths, 1):
        with console.working(f"{number}/{len(paths)} {path.stem}"):
            tried[path.stem] = _tried(path)
        outcome = tried[path.stem]["failed"] or f"{tried[path.stem]['seconds']:.1f} s"
        console.note(f"{number}/{len(paths)} {path.stem}: {outcome}")
    rows = [(name, outcome["failed"] or _told(outcome)) for name, outcome in tried.items()]
    console.result(tried, rows, title="lmtrain recipes test")
    if failed := [name for name, outcome in tried.items() if outcome["failed"]]:
        raise GateFailed(f"{len(failed)} of {len(tried)} recipes fail: {', '.join(failed)}")


def _tried(path: Path) -> Document:
    """What became of a recipe: {"failed": a sentence or None, "seconds": …, "objective": …, "architecture": …, losses}."""
    began, outcome = time.monotonic(), {"failed": None}
    try:
        recipe_class = RECIPES[objective_of(read_yaml(path), str(path))]
        recipe = _resolve(recipe_class, str(path), [], {})
        results = _smoke(recipe, Silent())
        outcome |= {"objective": results["objective"], "first_loss": results["train"]["first_loss"],
                    "last_loss": results["train"]["last_loss"], "metrics": results["metrics"]}  # fmt: skip
    except LmtrainError as error:
        outcome["failed"] = str(error).splitlines()[0]
    except Exception as error:  # a fault of ours is found here, and the other recipes are tried all the same
        outcome["failed"] = redacted(f"{type(error).__name__}: {error}".splitlines()[0])
    return outcome | {"seconds": round(time.monotonic() - began, 1)}


def _told(outcome: Document) -> str:
    metrics = [f"{name} {figure(outcome['metrics'][name])}" for name in list(outcome["metrics"])[:1]]
    return " · ".join(
        [f"{outcome['seconds']:.1f} s", f"loss {outcome['first_loss']:.2f} → {outcome['last_loss']:.2f}", *metrics]
    )


@recipes_app.command("show")
@says_what_is_wrong
def recipes_show(name: str) -> None:
    """Print a recipe."""
    sys.stdout.write(shipped.find(name).read_text(encoding="utf-8"))


@recipes_app.command("copy")
@says_what_is_wrong
def recipes_copy(
    name: str,
    to: Annotated[Path | None, typer.Argument(help="Where to; the same name here by default.")] = None,
) -> None:
    """Copy a recipe here, to be changed and run with lmtrain run FILE."""
    source = shipped.find(name)
    target = to or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UsageError(f"{target} is there already; name another file")
    try:
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}") from None
    Console().note(f"{target} · next: lmtrain run {target}")


# --- tokenizer -------------------------------------------------------------------------------------------------------
DataFlag = Annotated[list[str], typer.Option("--data", "-d", help="As for training: file, folder, glob, -, hub id.")]
Column = Annotated[str | None, typer.Option("--text-column", help="Column of the text.", show_default=False)]


def _text_rows(data: list[str], text_column: str | None) -> Any:
    from lmtrain.data import reading

    section = RECIPES["clm"].model_fields["data"].annotation
    return reading.load(data, section(train=data, text_column=text_column))  # type: ignore[misc]


@tokenizer_app.command("train")
@says_what_is_wrong
def tokenizer_train(
    data: DataFlag,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write.")],
    kind: Annotated[str, typer.Option(help="bpe:N, wordpiece:N, unigram:N, char or byte.")] = "bpe:8000",
    objective: Annotated[str, typer.Option(help="clm, mlm or seq2seq: decides the special tokens.")] = "clm",
    text_column: Column = None,
) -> None:
    """Train a tokenizer on text."""
    from lmtrain.config.architectures import TRAINED

    if not TRAINED.fullmatch(kind):
        raise UsageError(f"--kind {kind}: write bpe:8000, wordpiece:8000, unigram:8000, char or byte")
    if objective not in RECIPES:
        raise UsageError(f"--objective {objective}: clm, mlm or seq2seq")
    _check_new(output_dir)
    rows = _text_rows(data, text_column)
    from lmtrain.objectives.objective import OBJECTIVES

    trained = train_tokenizer.train_tokenizer(kind, rows.texts(), OBJECTIVES[objective].frame)
    try:
        trained.save_pretrained(output_dir)
    except OSError as error:
        raise StorageError(f"{output_dir}: {error.strerror}") from None
    Console().note(f"{len(trained):,} entries in {output_dir} · next: lmtrain tokenizer stats {output_dir} --data …")


@tokenizer_app.command("stats")
@says_what_is_wrong
def tokenizer_stats(
    tokenizer: Annotated[str, typer.Argument(help="Folder or hub id.")],
    data: DataFlag,
    text_column: Column = None,
    json: Json = False,
) -> None:
    """Tokens per word, bytes per token and the share of unknown tokens on your text."""
    rows = _text_rows(data, text_column)
    with _loading_libraries(console := Console(as_json=json)):
        from lmtrain.modeling import configuration
        from lmtrain.preprocessing import tokenizing as tokenizers
    loaded, _ = tokenizer.load_tokenizer(configuration.Model(name=tokenizer))
    figures = tokenizers.stats(loaded, rows.texts())
    console.result(figures, [(n, figure(v)) for n, v in figures.items()], title=_short(tokenizer))


# --- doctor ----------------------------------------------------------------------------------------------------------
@app.command(rich_help_panel="Look and prepare", context_settings=SETTINGS)
@says_what_is_wrong
def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Environment and devices, and whether loss and resume are exact on this machine."""
    if find_spec("torch") is None:
        raise UsageError("torch is not installed; pip install lmtrain brings it")
    console = Console(quiet=quiet, as_json=json)
    with _loading_libraries(console):
        from lmtrain.commands import doctor
    report = doctor.report(console)
    doctor.show(report, console)
    raise typer.Exit(0 if report["exact"] else 1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if show:
        sys.stdout.write(f"lmtrain {__version__}\n")
        raise typer.Exit


def main() -> None:
    try:
        app()
    except Exception:
        # As Python prints it, but what a library says may hold what it was given.
        sys.stderr.write(redacted(traceback.format_exc()))
        sys.exit(1)
