"""The commands that use a model: `eval`, `generate`, `probe`, `merge`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lmtrain import api
from lmtrain.cli import launch
from lmtrain.cli.common import Json, Quiet, check_new, short_name, show
from lmtrain.cli.flags import typed
from lmtrain.config import model_checks
from lmtrain.config.architectures import objective_of_folder
from lmtrain.config.model import Model
from lmtrain.runtime.console import Console
from lmtrain.runtime.libraries import loading_libraries, set_environment
from lmtrain.runtime.processes import is_first_process, not_used

Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="clm, mlm, seq2seq or classify. Default: what the model was made for.",
        show_default=False,
        rich_help_panel="Model",
        metavar="NAME",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="predictions.jsonl of another model: is the difference significant?",
        show_default=False,
        rich_help_panel="Evaluation",
        metavar="FILE",
    ),
]


def evaluate(
    ctx: typer.Context,
    objective: Objective = None,
    against: Against = None,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Score a model on data: exact loss, perplexity, text metrics; gates for CI; predictions.

    A run folder is scored by the settings of the run, and on what it held out if no --data are given.
    """
    console = Console(quiet=quiet, as_json=json, main_process=is_first_process())
    evaluation = api.open_evaluation(typed(ctx, flags), objective, console, against)
    if unused := not_used(evaluation.recipe.run.num_processes):
        console.warn(unused)
    if launch.wanted(evaluation.recipe.run):
        launch.relaunch(evaluation.recipe.run, evaluation.named, sys.argv[1:])
    results = api.score(evaluation, against, console, lambda results: show(results, console))
    if console.main_process:
        results.enforce_gates()


def generate(
    ctx: typer.Context,
    objective: Objective = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON line for each prompt.", rich_help_panel="Run")
    ] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Try a model: continue a text (clm), fill its masks (mlm), transform it (seq2seq).

    Without a prompt, in a terminal, a causal model chats.
    """
    given, console = typed(ctx, flags), Console(quiet=quiet, as_json=json)
    if not json and objective in (None, "clm") and _nothing_to_read(given) and _is_causal(given):
        api.chat(given, "", console)
    else:
        api.prompt(given, objective, console)


def _nothing_to_read(given: dict[str, Any]) -> bool:
    """Whether no prompt is named and a person sits at the terminal."""
    data = given.get("data", {})
    return not (data.get("prompt") or data.get("data")) and sys.stdin is not None and sys.stdin.isatty()


def _is_causal(given: dict[str, Any]) -> bool:
    name = given.get("model", {}).get("name")
    return bool(name) and Path(name).is_dir() and objective_of_folder(name) == "clm"


def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Run folder, other folder or hub id of a causal model.")],
    system: Annotated[
        str, typer.Option("--system", help="Instructions for the model.", rich_help_panel="Generation", metavar="TEXT")
    ] = "",
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Talk to a causal model in the terminal; it remembers the conversation. /help lists what it understands."""
    given = typed(ctx, flags)
    given.setdefault("model", {})["name"] = model
    api.chat(given, system, Console(quiet=quiet))


def probe(ctx: typer.Context, json: Json = False, quiet: Quiet = False, **flags: Any) -> None:
    """Compare encoders by how well their states predict the labels of texts or the tags of words.

    By default the encoder is frozen and a logistic regression is trained on its states; --fine-tune trains both.
    """
    console = Console(quiet=quiet, as_json=json)

    def present(results: api.Results) -> None:
        from lmtrain.commands.probe.metrics_table import metrics_table
        from lmtrain.runs.summary import signatures

        document = results.document
        header, rows = metrics_table(document, [short_name(name) for name in given["model"]["name"]])
        console.result(document, rows, f"probe: {document['data']['kind']} rows", signatures(document), header)

    given = typed(ctx, flags)
    api.probe(given, console, present).enforce_gates()


def merge(
    adapter: Annotated[str, typer.Argument(help="Run folder of a training with --lora, or another LoRA adapter.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write.", show_default=False)],
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the hub for the base.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the base.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also load pickled weights of the base.", hidden=True)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Merge a LoRA adapter into its base model."""
    from lmtrain.commands import saved_model

    set_environment(offline)
    model_checks.check_is_adapter(adapter)
    check_new(output_dir)
    model = Model(name=adapter, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    objective = saved_model.objective_of_model(model)
    model_checks.check_model(objective, model)
    console = Console(quiet=quiet)
    with loading_libraries(console):
        from lmtrain.commands import merge as merging
    merging.merge(model, objective, output_dir, console)
