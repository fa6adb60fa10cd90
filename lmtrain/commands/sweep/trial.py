"""A trial of a sweep: a run of its own, in a process of its own, which continues where it was killed."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.commands.sweep.space import Settings
from lmtrain.runs.file_names import RECIPE, RESULTS
from lmtrain.runtime.processes import die_with_parent

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
ERRORS = "error.txt"
"""What a failed trial printed, beside its run folder."""


@dataclass(frozen=True)
class Trial:
    """One combination of settings with one seed."""

    number: int
    settings: Settings
    seed: int | None
    """None: the recipe's."""
    folder: Path

    def entry(self, status: str, metrics: dict[str, float], seed: int | None) -> dict[str, Any]:
        """As sweep.json lists it."""
        return {
            "settings": self.settings,
            "seed": seed,
            "status": status,
            "metrics": metrics,
            "path": str(self.folder),
        }

    def outcome(self) -> dict[str, Any] | None:
        """The results that were saved, if there are any."""
        try:
            return json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def arguments(self, objective: str, recipe: str, assignments: list[str], stop_at: float | None) -> list[str]:
        """The command line of the run, which resumes if it was begun."""
        words = [objective, "--config", recipe]
        for assignment in assignments:
            words += ["--set", assignment]
        for name, value in self.settings.items():
            words += [
                "--set",
                f"{name}={json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}",
            ]
        words += ["--seed", str(self.seed)] if self.seed is not None else []
        words += ["--stop-at", f"{stop_at:g}"] if stop_at is not None else []
        words += ["--resume", "auto"] if (self.folder / RECIPE).is_file() else []
        return [*words, "--output-dir", str(self.folder), "--quiet", "--json"]


class Running:
    """A trial that runs, on one device."""

    def __init__(self, trial: Trial, arguments: list[str], device: str | None):
        self.trial, self.device = trial, device
        trial.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **({} if device is None else {GPU_VARIABLE: device})}
        self.log = (trial.folder.parent / f"{trial.folder.name}.{ERRORS}").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            env=environment,
            preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C is for the sweep, which ends its trials in peace
        )

    def ended(self) -> int | None:
        """The exit code; None while it runs. The log of a trial that succeeded is removed."""
        code = self.process.poll()
        if code is not None:
            self.log.close()
            if code in (0, 4):  # 4: a gate failed, which the recipe's own run would report
                Path(self.log.name).unlink(missing_ok=True)
        return code

    def stop(self) -> None:
        """Let it save a checkpoint and end; `wait` waits for that."""
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()

    def message(self) -> str:
        """The sentence with which it failed."""
        lines = Path(self.log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("lmtrain: ") for line in lines if line.startswith("lmtrain: ")]
        return next(iter(said or lines[-1:]), "no message")
