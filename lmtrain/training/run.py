"""A training run, from top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.errors import BrokenDown, Interrupted, LmtrainError, OutOfMemory, StorageError
from lmtrain.modeling.cpu_kernels import fallbacks, fast_dropout
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime import group
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import join_processes, leave_process_group
from lmtrain.runtime.files import storage_error
from lmtrain.runtime.memory import is_out_of_memory, retain_memory
from lmtrain.runtime.processes import is_first_process
from lmtrain.training.assembly import Assembly, assemble
from lmtrain.training.averaging import try_average
from lmtrain.training.data_report import show_stream_ledger
from lmtrain.training.hosts import of_first, on_every_host
from lmtrain.training.live_progress import LiveProgress
from lmtrain.training.preflight import is_wanted, preflight
from lmtrain.training.results import results_document, save_model
from lmtrain.training.trainer import ExactTrainer, Finished

NOT_WRITTEN = ("No space left", "File too large", "Disk quota exceeded", "Read-only file system", "I/O error")
"""Parts of the messages with which safetensors, torch and tokenizers report a full disk."""

NO_GRADIENT = "does not require grad and does not have a grad_fn"
"""Part of torch's message on a loss without a gradient."""


def train(
    recipe: Recipe, corpus: Corpus, folder: RunFolder, continued: ResumePoint, console: Console
) -> dict[str, Any]:
    """Train as the recipe says, from the checkpoint of `continued` on, and return the content of results.json.

    The run folder is written to only once training can start. Raises an LmtrainError for whatever the user can put right.
    """
    started = time.monotonic()
    join_processes(recipe.run.dist_timeout)
    folder, continued, corpus.kind = of_first((folder, continued, corpus.kind if is_first_process() else ""))
    run = assemble(recipe, corpus, folder, continued, console)
    trainer, callback = run.trainer, run.callback
    group.note_run(folder.path, _resuming(folder, recipe))
    trainer.elapsed.started = started
    with _recorded(recipe, run), _explained(folder), callback.stoppable():
        if is_wanted(recipe) and not trainer.is_deepspeed_enabled:  # which exists from the first step on
            preflight(trainer, callback.evaluator, run.data.train, folder.checkpoints, console)
        with on_every_host(continued.checkpoint) as resumed:
            if resumed:
                trainer.recall(resumed)
            if recipe.train.max_steps != 0:
                with stepping(trainer, recipe):
                    trainer.train(str(resumed) if resumed else None)
        trainer.finish_save()
        trainer.take_weights_to_use()
        scores, averaged = try_average(recipe, trainer, callback, callback.final_scores())
        status = "interrupted" if callback.paused else "completed"
        results = results_document(recipe, trainer, callback, scores, run.data, status) | averaged
        if not callback.paused:
            save_model(trainer, callback, scores, results)
        elif console.main_process:
            folder.finish(results)
            console.note(f"paused at step {trainer.state.global_step}; go on with\n  {_resuming(folder, recipe)}")
        if recipe.data.streaming:
            show_stream_ledger(recipe, run.data, results["data"], console)
    leave_process_group()
    if callback.stopped_by:
        raise Interrupted(_how_to_resume(trainer, folder, recipe), callback.stopped_by)
    return results


@contextmanager
def stepping(trainer: ExactTrainer, recipe: Recipe) -> Iterator[None]:
    """While open: memory is retained and the CPU kernels are in place; at the end the live line stops."""
    if trainer.args.device.type == "cpu":
        retain_memory()
    try:
        fast = recipe.train.fast_kernels and not recipe.train.compile
        with suppress(Finished), fast_dropout() if fast else nullcontext():
            yield
    finally:
        for note in fallbacks():
            trainer.warn(note)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, LiveProgress):
                callback.stop()


@contextmanager
def _recorded(recipe: Recipe, run: Assembly) -> Iterator[None]:
    """Write results.json also for a run that fails or is interrupted."""
    status = "interrupted"
    try:
        yield
    except LmtrainError:
        status = "failed"
        raise
    finally:
        if status == "failed" or run.callback.stopped_by:
            results = results_document(recipe, run.trainer, run.callback, None, run.data, status)
            with suppress(OSError):  # a full disk has been reported already
                if run.callback.console.main_process:
                    run.callback.folder.finish(results)


@contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """Turn errors of memory and disk into an LmtrainError of one sentence."""
    try:
        yield
    except LmtrainError:
        raise
    except OSError as error:
        raise storage_error(folder.path, error) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "out of memory; use a smaller --eval-batch-size, fewer beams or a shorter --max-length"
            ) from None
        if NO_GRADIENT in str(error):
            raise BrokenDown(
                "the loss does not depend on any parameter that is trained (it is detached, or the model is frozen), so there is "
                "no gradient and nothing would be learnt"
            ) from None
        if any(sign in str(error) for sign in NOT_WRITTEN):
            raise StorageError(
                f"{folder.path}: a file could not be written completely; free some space or choose another "
                "--output-dir. Earlier checkpoints are intact: --resume auto"
            ) from None
        raise


def _how_to_resume(trainer: ExactTrainer, folder: RunFolder, recipe: Recipe) -> str:
    step = trainer.state.global_step
    saved = "a checkpoint is saved" if step else "before the first step"
    return f"interrupted at step {step}, {saved}; resume with\n  {_resuming(folder, recipe)}"


def _resuming(folder: RunFolder, recipe: Recipe) -> str:
    """The command that resumes the run."""
    if (recipe.run.nodes or 1) > 1:
        return f"the command of each host and --resume auto -o {folder.path}"
    return f"{folder.command('--resume auto')} -o {folder.path}"
