"""The course of a sweep: which trial runs when, what is kept of it, and what is concluded."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from lmtrain.commands.sweep.ranking import ranking
from lmtrain.commands.sweep.space import Learner, Range, Settings, grid_points, random_points
from lmtrain.commands.sweep.trial import Running, Trial
from lmtrain.config.loading import to_yaml
from lmtrain.config.recipe import RECIPES
from lmtrain.config.resolution import resolve_recipe
from lmtrain.errors import InputError, UsageError
from lmtrain.metrics import higher_is_better
from lmtrain.runs.lock import LOCK, held
from lmtrain.runtime.console import Console, format_number, to_json
from lmtrain.runtime.files import storage_error, write_text

SWEEP, BEST, TRIALS = "sweep.json", "best.yaml", "trials"
POLL = 0.05
"""Seconds between two looks at the trials that run."""

FINAL = (0, 4, 6)
"""Exit codes of a trial that another start would not change: it completed, a gate failed, or its loss was not finite."""

Entry = dict[str, Any]


@dataclass
class Sweep:
    """A sweep and its trials so far. sweep.json holds `request` and the entries, so that a killed sweep continues."""

    folder: Path
    objective: str
    recipe: str
    """A name or a path, as `--config` takes it."""
    assignments: list[str]
    metric: str
    grid: dict[str, list[Any]]
    ranges: dict[str, Range]
    search: str
    """grid, random or tpe."""
    trials: int
    """Combinations to draw, with random and tpe."""
    seeds: int
    eta: int | None
    """Successive halving keeps one in so many; None: every trial runs to its end."""
    seed: int
    devices: Sequence[str | None]
    console: Console
    entries: dict[int, Entry] = field(default_factory=dict)
    """By number of the trial, each with the rung of halving that it has reached."""
    base_seed: int = 42

    # --- the whole

    def run(self) -> dict[str, Any]:
        """Run what is missing and return the content of sweep.json.

        Raises InputError where no trial succeeds, StorageError where another sweep uses the folder.
        """
        with held(self.folder):
            return self._run()

    def _run(self) -> dict[str, Any]:
        self._continue()
        if self.search == "tpe":
            self._learn()
        elif self.eta:
            self._halve(self._trials_of(self.points()))
        else:
            self._finish(self._trials_of(self.points()))
        document = self.document()
        if not document["ranking"]:
            raise InputError(f"no trial succeeded: {self._first_failure()}")
        write_text(self.folder / BEST, to_yaml(self._recipe(document["best"]["settings"]).saved({})))
        self._write(document)
        return document

    def points(self) -> list[Settings]:
        """The combinations, where they do not depend on results."""
        if self.search == "grid":
            return grid_points(self.grid)
        return random_points(self.ranges, self.grid, self.trials, self.seed)

    def check(self) -> None:
        """Raise UsageError for a setting or a value that a recipe does not take."""
        drawn = [{**{n: v[0] for n, v in self.grid.items()}, **{n: r.draw(0.5) for n, r in self.ranges.items()}}]
        for settings in self.points() if self.search == "grid" else drawn:
            self._recipe(settings)

    def _trials_of(self, points: Sequence[Settings], first: int = 0) -> list[Trial]:
        """A trial for each combination and seed."""
        trials = []
        for place, settings in enumerate(points):
            for turn in range(self.seeds):
                number = first + place * self.seeds + turn
                seed = self.base_seed + turn if self.seeds > 1 else None
                trials.append(Trial(number, settings, seed, self.folder / TRIALS / f"{number:03}"))
        return trials

    # --- strategies

    def _finish(self, trials: Sequence[Trial]) -> None:
        self._run_all(trials, None, 0)

    def _halve(self, trials: list[Trial]) -> None:
        """Successive halving (Jamieson and Talwalkar 2016): each rung keeps one in `eta` settings, the last one finishes.

        A rung is a pause in the whole training: the next one goes on from its checkpoint, with the same schedule.
        """
        assert self.eta
        rungs = rung_shares(len(trials) // self.seeds, self.eta)
        for rung, share in enumerate(rungs):
            self._run_all(trials, share if share < 1 else None, rung)
            if share < 1:
                trials = self._best_of(trials, rung)

    def _best_of(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """The trials of the best settings, one in `eta` of them."""
        assert self.eta
        groups: dict[str, list[Trial]] = {}
        for trial in trials:
            if self._value(trial) is not None:
                groups.setdefault(json.dumps(trial.settings), []).append(trial)
        sign = -1 if higher_is_better(self.metric) else 1
        ordered = sorted(groups.values(), key=lambda group: sign * fmean(self._value(trial) or 0.0 for trial in group))
        kept = ordered[: max(math.ceil(len(groups) / self.eta), 1)]
        names = ", ".join(_short(group[0].settings) for group in kept[:5])
        self.console.note(f"rung {rung + 1}: {len(kept)} of {len(groups)} go on: {names}")
        return [trial for group in kept for trial in group]

    def _learn(self) -> None:
        """One combination after the other, each drawn from the results so far."""
        learner = Learner(self.ranges, self.grid, self.seed, bool(higher_is_better(self.metric)))
        for number in range(self.trials):
            asked, settings = learner.ask()
            trials = self._trials_of([settings], number * self.seeds)
            self._finish(trials)
            values = [value for trial in trials if (value := self._value(trial)) is not None]
            learner.tell(asked, fmean(values) if values else None)

    # --- running

    def _run_all(self, trials: Sequence[Trial], share: float | None, rung: int) -> None:
        """Run the trials that have not reached this rung, one on each device at a time."""
        waiting = [trial for trial in trials if self._needs(trial, rung)]
        total, free = len(trials), list(self.devices)
        running: list[tuple[Running, float]] = []
        done = total - len(waiting)
        try:
            while waiting or running:
                while waiting and free:
                    trial = waiting.pop(0)
                    running.append((self._start(trial, share, free.pop()), time.monotonic()))
                time.sleep(POLL)
                for pair in [pair for pair in running if pair[0].ended() is not None]:
                    running.remove(pair)
                    free.append(pair[0].device)
                    done += 1
                    self._note(*pair, rung, f"{done}/{total}")
        finally:
            for one, _ in running:
                one.stop()
            for one, _ in running:
                one.wait()

    def _start(self, trial: Trial, share: float | None, device: str | None) -> Running:
        return Running(trial, trial.arguments(self.objective, self.recipe, self.assignments, share), device)

    def _needs(self, trial: Trial, rung: int) -> bool:
        entry = self.entries.get(trial.number)
        if entry is None:
            return True
        if self.search == "tpe":  # later draws were made from this result
            return False
        return entry["rung"] < rung if entry["code"] in (0, 4) else entry["code"] not in FINAL

    def _note(self, one: Running, began: float, rung: int, place: str) -> None:
        """Keep the outcome of a trial and say it."""
        trial, code = one.trial, one.ended()
        results = trial.outcome() or {}
        status = results.get("status", "failed") if code in (0, 4) else "failed"
        metrics = results.get("metrics") or {} if status != "failed" else {}
        seed = trial.seed if trial.seed is not None else results.get("environment", {}).get("seed")
        entry = {**trial.entry(status, metrics, seed), "rung": rung, "code": code}
        entry["steps"] = results.get("train", {}).get("steps", 0)
        if status == "failed":
            entry["message"] = one.message()
        self.entries[trial.number] = entry
        self._write(self.document())
        value = metrics.get(self.metric)
        outcome = entry.get("message") or (f"{self.metric} {format_number(value)}" if value is not None else status)
        seeded = f", seed {trial.seed}" if trial.seed is not None else ""
        self.console.note(f"{place} {_short(trial.settings)}{seeded}: {outcome} ({time.monotonic() - began:.0f} s)")
        if status != "failed" and value is None:
            raise UsageError(
                f"--metric {self.metric}: the runs have {', '.join(metrics) or 'no metrics, for want of evaluation data'}"
            )

    def _value(self, trial: Trial) -> float | None:
        return self.entries.get(trial.number, {}).get("metrics", {}).get(self.metric)

    # --- what is kept

    @property
    def request(self) -> dict[str, Any]:
        """What a sweep is, so that a folder continues the same one only."""
        return {
            "recipe": self.recipe,
            "content": sha256(to_yaml(self._recipe({}).saved({})).encode()).hexdigest(),
            "objective": self.objective,
            "set": self.assignments,
            "metric": self.metric,
            "grid": self.grid,
            "ranges": {name: [r.low, r.high, r.log, r.whole] for name, r in self.ranges.items()},
            "search": self.search,
            "trials": self.trials,
            "seeds": self.seeds,
            "halving": self.eta,
            "seed": self.seed,
        }

    def document(self) -> dict[str, Any]:
        """The content of sweep.json."""
        ordered = [self.entries[number] for number in sorted(self.entries)]
        ranked = ranking(ordered, self.metric)
        best = {"settings": ranked[0]["settings"], "recipe": str(self.folder / BEST)} if ranked else None
        return {"request": self.request, "metric": self.metric, "trials": ordered, "ranking": ranked, "best": best}

    def _write(self, document: dict[str, Any]) -> None:
        numbered = {**document, "numbers": sorted(self.entries)}
        try:
            write_text(self.folder / SWEEP, to_json(numbered, indent=2) + "\n")
        except OSError as error:
            raise storage_error(self.folder, error) from None

    def _continue(self) -> None:
        """Take over the entries of a sweep that was stopped. Raises UsageError if the folder holds something else."""
        path = self.folder / SWEEP
        if not path.is_file():
            if self.folder.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
                raise UsageError(f"--output-dir {self.folder} is not empty and holds no sweep; choose another folder")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(self.folder, error) from None
            self._write(self.document())
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            entries = dict(zip(before["numbers"], before["trials"], strict=True))
            request = before["request"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: not the file of a sweep; choose another --output-dir") from None
        own = json.loads(to_json(self.request))
        if changed := [name for name in own if own[name] != request.get(name)]:
            raise UsageError(
                f"--output-dir {self.folder} holds another sweep ({', '.join(changed)} differ); choose another folder"
            )
        self.entries = entries
        self.console.note(f"{self.folder} has {len(entries)} trials; the sweep continues")

    def _recipe(self, settings: Settings) -> Any:
        words = [
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
        ]
        return resolve_recipe(RECIPES[self.objective], self.recipe, [*self.assignments, *words], {})

    def _first_failure(self) -> str:
        return next((entry["message"] for entry in self.entries.values() if "message" in entry), "nothing ran")


def rung_shares(settings: int, eta: int) -> list[float]:
    """The shares of the whole training at which halving compares: for 12 settings and 3, [1/9, 1/3, 1]."""
    rungs = max(math.floor(math.log(max(settings, 1), eta) + 1e-9), 0)
    return [eta ** -(rungs - rung) for rung in range(rungs)] + [1.0]


def _short(settings: Settings) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())
