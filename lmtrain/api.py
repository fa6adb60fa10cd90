"""The commands without a terminal: the entry point of the command line and of Python users.

Nothing heavy is imported here; each function imports what it needs after its arguments are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtrain.config import model_checks
from lmtrain.config.loading import build, from_environment, merge
from lmtrain.config.recipe import RECIPES, GenerateRequest, ProbeRequest, Recipe, untrained_leaves
from lmtrain.config.resolution import keywords_in_sections, load_recipe
from lmtrain.config.values import Document
from lmtrain.errors import UsageError
from lmtrain.evaluation import figures, gates
from lmtrain.evaluation.gatekeeper import GateKeeper
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime import processes
from lmtrain.runtime.console import Console, Silent
from lmtrain.runtime.libraries import loading_libraries, set_environment

if TYPE_CHECKING:
    from lmtrain.data.rows import Rows

__all__ = ["Recipe", "Results", "evaluate", "generate", "load_recipe", "train"]

Show = Callable[["Results"], None]
"""Called with the results, whether or not the gates hold."""


@dataclass(frozen=True)
class Results:
    """The results of a training or an evaluation: the content of results.json."""

    document: Document
    folder: RunFolder | None = None
    """The run folder; None for an evaluation, and for a run whose folder is temporary."""

    @property
    def objective(self) -> str:
        return str(self.document["objective"])

    @property
    def status(self) -> str:
        """completed, interrupted or failed."""
        return str(self.document["status"])

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> value on the evaluation data."""
        return dict(self.document["metrics"])

    @property
    def intervals(self) -> dict[str, list[float]]:
        """Name -> 95 % interval of the metric, by bootstrap."""
        return dict(self.document.get("intervals", {}))

    @property
    def train(self) -> dict[str, Any]:
        """Steps, losses, tokens and seconds of the training."""
        return dict(self.document.get("train", {}))

    @property
    def data(self) -> dict[str, Any]:
        """The ledgers: what was read, used, truncated and dropped."""
        return dict(self.document["data"])

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Each as {expression, value, holds}, with a reason where it could not be judged."""
        return list(self.document["gates"])

    def enforce_gates(self) -> None:
        """Raise GateFailed, naming them, where gates failed."""
        gates.enforce(self.document)


# --- training --------------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    console: Console | None = None,
    show: Show | None = None,
    saved: bool = True,
    **overrides: Any,
) -> Results:
    """Train, evaluate and save a model as the recipe says, or return the results of a run that is completed already.

    `overrides` are named as flags are: `train("clm-quickstart", max_steps=10, output_dir="run")`. Gates are evaluated;
    `Results.enforce_gates()` raises where one failed. Unless the run folder stays (`saved`), the results do not name it.
    Raises an LmtrainError for whatever the user can put right.
    """
    from lmtrain.training.start import open_corpus, started

    recipe, console = load_recipe(recipe, **overrides), console or Silent()
    keeper = GateKeeper.of(recipe, console)
    with ExitStack() as stack:
        with keeper.reporting():
            baseline = keeper.check_recipe(recipe, figures.of_training(recipe))
            start = stack.enter_context(started(recipe, console, lock=True))
            document = start.finished
            if document is None:
                corpus = open_corpus(recipe, console)
                with loading_libraries(console):
                    from lmtrain.training import run
                document = run.train(recipe, corpus, start.folder, start.continued, console)
        results = Results(document, start.folder if saved else None)
        if console.main_process:
            _settle(results, keeper, baseline, show)
    return results


def check(recipe: Recipe, console: Console, show: Show | None = None) -> Results | None:
    """Everything that `train` checks before it imports torch; the results of a run that is completed already.

    For a process that starts others. Raises as `train` does.
    """
    from lmtrain.training.start import open_corpus, started

    keeper = GateKeeper.of(recipe, console)
    with ExitStack() as stack:
        with keeper.reporting():
            baseline = keeper.check_recipe(recipe, figures.of_training(recipe))
            start = stack.enter_context(started(recipe, console, lock=False))
            if start.finished is None:
                open_corpus(recipe, console, read=False)  # the processes that it starts read it
                return None
        results = Results(start.finished, start.folder)
        _settle(results, keeper, baseline, show)
        return results


def smoke(recipe: Recipe, *, console: Console | None = None, show: Show | None = None) -> Results:
    """Train as the recipe says, but offline and in seconds: a tiny model, and made-up rows where data are not at hand."""
    console = console or Silent()
    set_environment(offline=True)
    with loading_libraries(console):
        from lmtrain.commands import smoke as smoking
    with smoking.shrunk(recipe, console) as small:
        return train(small, console=console, show=show, saved=recipe.run.output_dir is not None)


# --- using a model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """An evaluation whose arguments and data are checked."""

    recipe: Recipe
    rows: Rows
    named: list[str]
    """The data that were named; empty where the run's own evaluation data are used."""
    baseline: Document | None
    keeper: GateKeeper


def evaluate(
    model: str | Path,
    data: str | Sequence[str] | None = None,
    *,
    objective: str | None = None,
    against: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> Results:
    """Score a model or run folder on data: exact loss, perplexity, text metrics. `options` are named as flags are.

    Without `data` a run folder is scored on what the run held out. Raises an LmtrainError for whatever the user can put right.
    """
    named = [data] if isinstance(data, str) else data
    given = keywords_in_sections({"model": str(model), "data": named, **options}, untrained_leaves(*RECIPES.values()))
    console = console or Silent()
    return score(open_evaluation(given, objective, console, against), against, console)


def open_evaluation(
    given: Document, objective: str | None, console: Console, against: str | None = None
) -> Evaluation:
    """Check an evaluation and read its data. `given` holds flags, in sections. Raises UsageError, InputError."""
    from lmtrain.commands import saved_model
    from lmtrain.data import corpus, reading

    processes.settle()
    set_environment(given.get("run", {}).get("offline"))
    recipe, named = saved_model.evaluation_recipe(given, objective)
    keeper = GateKeeper.of(recipe, console)
    with keeper.reporting():
        model_checks.check_model(recipe.objective, recipe.model)
        baseline = keeper.check_recipe(recipe, figures.of_evaluation(recipe, against is not None))
        with console.working("reading the data"):
            seed = recipe.train.seed
            rows = reading.load(named, recipe.data, "validation") if named else corpus.held_out(recipe.data, seed)
    return Evaluation(recipe, rows, named or [], baseline, keeper)


def score(evaluation: Evaluation, against: str | None, console: Console, show: Show | None = None) -> Results:
    """Score a model. Raises an LmtrainError for whatever the user can put right."""
    with evaluation.keeper.reporting():
        with loading_libraries(console):
            from lmtrain.commands import eval as scoring
        results = Results(scoring.evaluate(evaluation.recipe, evaluation.rows, against, console))
    if console.main_process:
        _settle(results, evaluation.keeper, evaluation.baseline, show)
    return results


def generate(
    model: str | Path,
    prompts: str | Sequence[str],
    *,
    objective: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Answer prompts with a model; each answer is {input, output, …}. `options` are named as flags are.

    Raises an LmtrainError for whatever the user can put right.
    """
    named = {"model": str(model), "prompt": [prompts] if isinstance(prompts, str) else list(prompts), **options}
    return prompt(keywords_in_sections(named, untrained_leaves(GenerateRequest)), objective, console or Silent())


def prompt(given: Document, objective: str | None, console: Console) -> list[dict[str, Any]]:
    """Answer the prompts that `given` flags, in sections, name. Raises an LmtrainError."""
    from lmtrain.commands import saved_model
    from lmtrain.data import prompts

    set_environment(given.get("run", {}).get("offline"))
    request, objective, kind, column = saved_model.generate_request(given, objective)
    model_checks.check_model(objective, request.model)
    found, empty, notes = prompts.read(request.data, column, saved_model.joint_of(objective))
    for line in notes:
        console.note(line)
    if empty:
        console.warn(f"{empty:,} empty prompts are left out")
    with loading_libraries(console):
        from lmtrain.commands import generate as generating
    return generating.generate(request, objective, found, kind, console)


def chat(given: Document, system: str, console: Console) -> None:
    """Talk to the causal model that `given` flags, in sections, name. Raises an LmtrainError."""
    from lmtrain.commands import saved_model

    set_environment(given.get("run", {}).get("offline"))
    request, objective, kind, _ = saved_model.generate_request(given, None)
    if objective != "clm":
        raise UsageError(f"{request.model.name}: a model of {objective} does not chat; use lmtrain generate")
    model_checks.check_model(objective, request.model)
    with loading_libraries(console):
        from lmtrain.commands import chat as chatting
    chatting.chat_with(request, kind, system, console)


def probe(given: Document, console: Console, show: Show | None = None) -> Results:
    """Compare encoders by how well a classifier on their states predicts labels. `given` holds flags, in sections."""
    from lmtrain.commands.probe import labels

    request = build(ProbeRequest, merge(from_environment(ProbeRequest), given), "the command line")
    set_environment(request.run.offline)
    keeper = GateKeeper(request.gates, "probe", request.model.name[-1], request.run.allow_drift, console)
    with keeper.reporting():
        baseline = keeper.check(figures.of_probe(request))
        for model in request.encoders():
            model_checks.check_encoder(model)
        with console.working("reading the data"):
            splits = labels.read_splits(request.data, request.probe.seed, request.gates.assertions)
        with loading_libraries(console):
            from lmtrain.commands.probe import probe as probing
        results = Results(probing.probe(request, splits, console))
    _settle(results, keeper, baseline, show)
    return results


# --- gates -----------------------------------------------------------------------------------------------------------


def _settle(results: Results, keeper: GateKeeper, baseline: Document | None, show: Show | None) -> None:
    """Judge the gates, record and report them, and show the results even if that fails."""
    try:
        keeper.settle(results.document, results.folder, baseline)
    finally:
        if show:
            show(results)
