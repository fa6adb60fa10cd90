"""The start of a run, before torch is imported: its folder, its lock, the checkpoint it resumes from, its data."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmtrain.config import model_checks
from lmtrain.config.recipe import Recipe
from lmtrain.config.trackers import check_trackers
from lmtrain.config.values import Document
from lmtrain.data.cache import Cache
from lmtrain.data.corpus import Corpus
from lmtrain.errors import UsageError
from lmtrain.runs import checkpoint, compatibility, run_folder
from lmtrain.runs import lock as locking
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime import cluster, processes
from lmtrain.runtime.console import Console
from lmtrain.runtime.libraries import set_environment


@dataclass
class Start:
    """What a run starts with."""

    folder: RunFolder
    continued: ResumePoint
    finished: Document | None = None
    """The results of a run that is already complete."""


@contextmanager
def started(recipe: Recipe, console: Console, lock: bool) -> Iterator[Start]:
    """Do the checks that take milliseconds, then hold the run folder's lock."""
    processes.settle()
    set_environment(recipe.run.offline, recipe.run.num_proc)
    console.main_process = processes.is_first_process() and _is_first_host(recipe)
    found = (
        processes.not_used(recipe.run.num_processes),
        processes.launched_alone(),
        None if not lock else processes.not_sharded(recipe.run.shard),
    )
    for warning in found:
        if warning:
            console.warn(warning)
    if recipe.run.resume and recipe.train.max_steps == 0:
        raise UsageError("--max-steps 0 only evaluates, so there is nothing to --resume")
    check_trackers(recipe.train.report_to)
    model_checks.check_model(recipe.objective, recipe.model)
    start = Start(run_folder.RunFolder(Path(recipe.run.output_dir or ".")), checkpoint.ResumePoint())
    with ExitStack() as stack:
        if console.main_process:
            start.folder = run_folder.choose_folder(recipe.run, recipe.objective, recipe.model.name)
            run_folder.check_writable(start.folder)
            if lock:
                stack.enter_context(locking.held(start.folder.path))
                checkpoint.clean_up(start.folder.checkpoints)
            run_folder.check_unused(start.folder, recipe.run)
            start.continued = checkpoint.find(recipe.run.resume, start.folder.checkpoints)
            for line in compatibility.check_settings(start.continued.identity, recipe):
                console.warn(line)
            done = run_folder.completed_results(start.folder) if recipe.run.resume == "auto" else None
            if done and not run_folder.ends_differently(start.folder, recipe):
                console.note("the run is completed already; these are its results")
                start.finished = done
        yield start


def _is_first_host(recipe: Recipe) -> bool:
    """Whether the processes of this host write the run folder, as far as this process knows before they have met."""
    return (recipe.run.nodes or 1) == 1 or cluster.host_number(recipe.run.node_rank) == 0


def open_corpus(recipe: Recipe, console: Console, read: bool = True) -> Corpus:
    """The recipe's data, `read` and checked, or only opened. Of several processes the first one reads. Raises InputError."""
    corpus = Corpus(recipe.data, recipe.train.seed, Cache.of(recipe.run, console))
    with console.working("reading the data"):
        if read and processes.is_first_process():
            corpus.check()
        else:
            corpus.open()
    return corpus
