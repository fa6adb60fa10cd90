"""Which settings a sweep tries: a grid of values, random draws from ranges, or draws that learn from earlier trials."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lmtrain.config.values import parse_yaml, split_outside_brackets
from lmtrain.errors import UsageError

Settings = dict[str, Any]
"""Dotted name of a setting -> value."""


TRIES = 20
"""Draws for each combination that is wanted, at most."""


@dataclass(frozen=True)
class Range:
    """All numbers between two bounds; logarithmic ones are drawn evenly by their order of magnitude."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, unit: float) -> float | int:
        """The value at a place between 0 and 1."""
        if self.log:
            value = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + unit * (self.high - self.low)
        return round(value) if self.whole else float(f"{value:.6g}")


def parse_grid(given: Sequence[str]) -> dict[str, list[Any]]:
    """`train.learning_rate=1e-4,3e-4` -> its values by name. Raises UsageError."""
    grid: dict[str, list[Any]] = {}
    for text in given:
        name, values = _parts(text, "--grid", "train.learning_rate=1e-4,3e-4")
        parsed = [parse_yaml(value) for value in split_outside_brackets(values) if value.strip()]
        if not parsed:
            raise UsageError(f"--grid {text}: names no value")
        if len(set(map(repr, parsed))) < len(parsed):
            raise UsageError(f"--grid {text}: a value occurs twice")
        grid[name] = parsed
    return grid


def parse_ranges(given: Sequence[str]) -> dict[str, Range]:
    """`train.learning_rate=1e-5:1e-3:log` -> its range by name. Raises UsageError."""
    ranges = {}
    for text in given:
        name, bounds = _parts(text, "--range", "train.learning_rate=1e-5:1e-3:log")
        low, _, rest = bounds.partition(":")
        high, _, scale = rest.partition(":")
        numbers = [parse_yaml(bound) for bound in (low, high)]
        if scale not in ("", "log") or not all(
            isinstance(n, int | float) and not isinstance(n, bool) for n in numbers
        ):
            raise UsageError(f"--range {text}: write it as NAME=LOW:HIGH or NAME=LOW:HIGH:log")
        if numbers[0] >= numbers[1] or (scale and numbers[0] <= 0):
            raise UsageError(f"--range {text}: LOW must be below HIGH{', and above 0 for log' if scale else ''}")
        whole = all(isinstance(n, int) for n in numbers)
        ranges[name] = Range(float(numbers[0]), float(numbers[1]), bool(scale), whole)
    return ranges


def _parts(text: str, flag: str, example: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"{flag} {text}: write it as {example}")
    return name.strip(), values


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination, the last setting varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def random_points(
    ranges: Mapping[str, Range], grid: Mapping[str, Sequence[Any]], count: int, seed: int
) -> list[Settings]:
    """`count` different draws, fewer where there are no more; a setting with a list of values takes one of them."""
    draw = random.Random(seed)
    points: dict[str, Settings] = {}  # a combination that is drawn again would say nothing new
    for _ in range(TRIES * count):
        point = {
            **{name: values[draw.randrange(len(values))] for name, values in grid.items()},
            **{name: bounds.draw(draw.random()) for name, bounds in ranges.items()},
        }
        points.setdefault(repr(point), point)
        if len(points) == count:
            break
    return [*points.values()]


class Learner:
    """Draws by optuna's tree-structured Parzen estimator (Bergstra et al. 2011) from the trials so far.

    The same results in the same order give the same draws, so that a sweep that was killed goes on as it would have.
    """

    def __init__(self, ranges: Mapping[str, Range], grid: Mapping[str, Sequence[Any]], seed: int, higher: bool):
        try:
            import optuna
        except ImportError:
            raise UsageError("--search tpe needs optuna: pip install 'lmtrain[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.ranges, self.grid = ranges, grid
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(5, 2 * (len(ranges) + len(grid))))
        self.study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)

    def ask(self) -> tuple[Any, Settings]:
        """(a trial of optuna, its settings)."""
        trial = self.study.ask()
        settings: Settings = {n: trial.suggest_categorical(n, list(values)) for n, values in self.grid.items()}
        for name, bounds in self.ranges.items():
            if bounds.whole:
                settings[name] = trial.suggest_int(name, int(bounds.low), int(bounds.high), log=bounds.log)
            else:
                drawn = trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
                settings[name] = float(f"{drawn:.6g}")
        return trial, settings

    def tell(self, trial: Any, value: float | None) -> None:
        """The metric of a trial; None for one that failed."""
        from optuna.trial import TrialState

        self.study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
