"""The gates of a command: checked before its work, judged after it, and reported to CI in either case."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lmtrain.config.assertions import check_figures
from lmtrain.config.eval import Gates
from lmtrain.config.recipe import Recipe
from lmtrain.config.values import Document
from lmtrain.errors import StorageError, UsageError
from lmtrain.evaluation import gates
from lmtrain.evaluation.baseline import read_baseline
from lmtrain.runs.run_folder import RunFolder, check_output_file
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import storage_error


@dataclass(frozen=True)
class GateKeeper:
    """The gates of one run or evaluation."""

    section: Gates
    objective: str
    model: str
    allowed: Sequence[str]
    """The names in --allow-drift."""
    console: Console

    @classmethod
    def of(cls, recipe: Recipe, console: Console) -> Self:
        return cls(recipe.gates, recipe.objective, recipe.model.name, recipe.run.allow_drift, console)

    def check(self, figures: Collection[str]) -> Document | None:
        """Check before the work that the gates can be judged; the baseline. `figures`: see `check_figures`.

        Raises UsageError, InputError.
        """
        check_output_file(self.section.junit, "--junit")
        try:
            check_figures(self.section.assertions, figures)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return read_baseline(self.section.baseline, self.objective)

    def check_recipe(self, recipe: Recipe, figures: Collection[str]) -> Document | None:
        """The same for a recipe, whose best metric and file of predictions are checked, too."""
        check_output_file(recipe.eval.predictions, "--predictions")
        best = recipe.eval.best_metric
        if best != "eval_loss" and not recipe.evaluates:
            raise UsageError(f"--best-metric {best}: needs evaluation data: --eval-data or --val-split")
        return self.check(figures)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """If the block raises, the JUnit file is written nevertheless, with an error for every gate."""
        try:
            yield
        except BaseException as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            with suppress(OSError):
                self._write_junit(gates.unjudged(self.section, reason))
            raise

    def settle(self, results: Document, folder: RunFolder | None, baseline: Document | None) -> None:
        """Judge the gates, enter them into the results and those in the run folder, and write the reports.

        A summary page that cannot be written is a warning, because nobody asked for it. Raises StorageError.
        """
        written = results["gates"]
        judged = gates.judge(self.section, results, baseline, self.allowed)
        results["gates"] = [gate.document() for gate in judged]
        if baseline and (names := gates.uncompared(results, baseline)):
            self.console.warn(f"--baseline {self.section.baseline}: not compared: {', '.join(names)}")
        try:
            if folder and results["gates"] != written:
                _finish(folder, results)
        finally:
            self._report(judged, results)

    def _report(self, judged: list[gates.Gate], results: Document) -> None:
        try:
            self._write_junit(judged)
        except OSError as error:
            raise StorageError(f"--junit {self.section.junit}: {error.strerror}; name another file") from None
        finally:
            self._append_summary(results)

    def _append_summary(self, results: Document) -> None:
        if not (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
            return
        from lmtrain.evaluation.gate_reports import append_summary

        try:
            append_summary(Path(summary), results)
        except OSError as error:
            self.console.warn(f"$GITHUB_STEP_SUMMARY {summary}: {error.strerror}; the summary is not written")

    def _write_junit(self, judged: list[gates.Gate]) -> None:
        if self.section.junit and self.console.main_process:
            from lmtrain.evaluation.gate_reports import write_junit

            write_junit(Path(self.section.junit), judged, f"{self.objective} {self.model}")


def _finish(folder: RunFolder, results: Document) -> None:
    try:
        folder.finish(results)
    except OSError as error:
        raise storage_error(folder.path, error) from None
