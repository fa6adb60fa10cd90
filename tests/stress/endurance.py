"""Runs that are killed, stopped, starved, poisoned and damaged, and whether each still ends as if nothing had been.

`python tests/stress/endurance.py [PROGRAM ...]` runs the programs and writes their rows of benchmarks/endurance.md; the
other rows stay as they are (benchmarks/endurance.json holds them all). `--quick` tries a few trials of each, `--only
WORD` those whose name holds it; both write nothing.

A trial is right if the run ends with the same weights (sha256), the same losses at the same steps and the same figures
as one that was left in peace, or else if the command says what it has to say. Every other one is listed by name.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "stress")]

import trials
from tiny_models import MODELS, TINY, scratch

from lmtrain.runs import checkpoint, compatibility

Command = list[Any]

NOUNS = ("cat", "dog", "bird", "fish", "child", "king", "river", "tree")
VERBS = ("sees", "likes", "finds", "hears", "follows", "meets")
LAST = 12
"""The steps of a run of `Lab.command`."""
SAVED_BY = 2.5
"""Seconds from a signal to the end: two, and a save of a tiny model on a busy machine."""


class Failed(Exception):
    """The trial did not come out as it has to."""


def expect(condition: Any, reason: str) -> None:
    if not condition:
        raise Failed(reason)


@dataclass(frozen=True)
class Case:
    """A trial: `attempt` is given an empty folder, raises what is wrong, and returns what there is to measure."""

    name: str
    attempt: Callable[[Path], float | None]


@dataclass(frozen=True)
class End:
    """What a run came to."""

    weights: str
    losses: list[tuple]
    figures: dict[str, float]

    @classmethod
    def of(cls, run: Path) -> "End":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        return cls(
            sha256((run / "model.safetensors").read_bytes()).hexdigest(),
            [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines],
            json.loads((run / "results.json").read_text("utf-8"))["metrics"],
        )

    def check(self, run: Path) -> None:
        """Raises Failed where the run did not come to this."""
        other = End.of(run)
        for name, own, its in zip(
            ["weights", "losses", "figures"], vars(self).values(), vars(other).values(), strict=True
        ):
            expect(own == its, f"other {name} than undisturbed")


@dataclass
class Lab:
    """A temporary folder with the data, and the runs that nothing happened to."""

    folder: Path
    quick: bool
    known: dict[str, tuple[End, Path]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        lines = [
            f"the {NOUNS[i % 8]} {VERBS[i % 6]} the {NOUNS[(i * 5 + i // 8) % 8]}" + " again and again" * (i % 3 > 0)
            for i in range(60)
        ]
        write_rows(self.folder / "text.jsonl", [{"text": line} for line in lines])
        pairs = [{"source": line, "target": " ".join(reversed(line.split()))} for line in lines]
        write_rows(self.folder / "pairs.jsonl", pairs)

    def data(self, objective: str) -> Path:
        return self.folder / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")

    def command(self, objective: str, *more: Any, data: Path | None = None) -> Command:
        """Twelve steps in two epochs; what comes later overrides."""
        alone = [] if objective == "seq2seq" or "--packing" in more else ["--no-packing"]
        return [
            objective,
            *scratch(MODELS[objective]),
            *alone,
            "--data",
            data or self.data(objective),
            "-o",
            "run",
            "--val-split",
            0.2,
            "--samples",
            0,
            "--lr",
            1e-3,
            "-b",
            4,
            "--grad-accum",
            2,
            "--epochs",
            2,
            "--save-every",
            3,
            "--eval-every",
            4,
            "--log-every",
            1,
            "--keep",
            2,
            *more,
        ]

    def undisturbed(self, command: Command) -> tuple[End, Path]:
        """What the command comes to, and the folder of the run."""
        key = json.dumps([str(word) for word in command])
        with self.lock:
            if key not in self.known:
                place = Path(tempfile.mkdtemp(prefix="reference-", dir=self.folder))
                outcome = trials.run(command, place)
                expect(outcome.code == 0, f"the undisturbed run ended with {outcome.code}: {last_words(outcome)}")
                self.known[key] = End.of(place / "run"), place / "run"
            return self.known[key]

    def go_on(self, command: Command, place: Path, *more: Any, before: trials.Fault | None = None) -> trials.Outcome:
        """Resume, and compare with the undisturbed run."""
        expected, _ = self.undisturbed(command)
        outcome = trials.run([*command, "--resume", "auto", *more], place, before)
        expect(outcome.code == 0, f"resumed, it ended with {outcome.code}: {last_words(outcome)}")
        expected.check(place / "run")
        expect(not leftovers(place), f"left: {leftovers(place)}")
        return outcome

    def stopped_before(self, step: int, command: Command, place: Path) -> None:
        """A run with the steps before `step` behind it."""
        outcome = trials.run(command, place, trials.signals_at("step", signal.SIGTERM, after=step - 1))
        expect(outcome.code == 143, f"stopped, it ended with {outcome.code}: {last_words(outcome)}")


Program = Callable[[Lab], Iterable[Case]]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def last_words(outcome: trials.Outcome) -> str:
    return " ".join(line.removeprefix("lmtrain: ") for line in outcome.err.strip().splitlines()[-2:])[-300:]


def leftovers(place: Path) -> list[str]:
    """What no run may leave in its folder, and no checkpoint either."""
    run = place / "run"
    return sorted(path.relative_to(run).as_posix() for path in [*run.glob(".*"), *(run / "checkpoints").glob(".*")])


def steps_saved(place: Path) -> list[int]:
    return sorted(checkpoint.step_of(path) for path in (place / "run/checkpoints").glob("checkpoint-*"))


def all_whole(place: Path) -> None:
    """What stands under the name of a checkpoint is one."""
    for path in (place / "run/checkpoints").glob("checkpoint-*"):
        expect(not checkpoint.damage(path), f"{path.name}: {checkpoint.damage(path)}")


# --- killed ----------------------------------------------------------------------------------------------------------


def _points(lab: Lab, command: Command, within: str) -> list[trials.Point]:
    place = Path(tempfile.mkdtemp(prefix="points-", dir=lab.folder))
    trials.run(command, place, trials.dies_at("run", None, place / "log", within))
    return trials.points(place / "log")


def _saves(points: Sequence[trials.Point], *numbers: int) -> list[trials.Point]:
    steps = sorted({point.step for point in points if point.step})
    return [point for point in points if point.step in [steps[number - 1] for number in numbers]]


def kills(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        command = lab.command(objective)
        for point in _saves(_points(lab, command, trials.CHECKPOINTS), 2, 3):
            yield Case(
                f"{objective}, {point.number} {point.operation} {point.name}",
                partial(_killed_at, lab, command, point.number, trials.CHECKPOINTS),
            )


def ends(lab: Lab) -> Iterator[Case]:
    command = lab.command("clm")
    points = _points(lab, command, ".")
    last_save = max(point.number for point in points if point.name.startswith("checkpoints"))
    for point in points:
        if point.step == 0 or point.number > last_save:
            name = re.sub(r"\.\d+$", ".PID", point.name)
            yield Case(
                f"clm, {point.number} {point.operation} {name}", partial(_killed_at, lab, command, point.number, ".")
            )


def _killed_at(lab: Lab, command: Command, number: int, within: str, place: Path) -> None:
    outcome = trials.run(command, place, trials.dies_at("run", number, within=within))
    expect(outcome.code == -9, f"not killed: it ended with {outcome.code}: {last_words(outcome)}")
    all_whole(place)
    lab.go_on(command, place)


def sigkills(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        command = lab.command(objective)
        for number in range(50):
            aimed = number % 2 == 1
            attempt = partial(_killed_from_outside, lab, command, f"{objective} {number}", aimed)
            yield Case(f"{objective} {number}{', in a save' if aimed else ''}", attempt)
        for number in range(3):
            yield Case(
                f"{objective}, five times, {number}", partial(_killed_deep, lab, command, f"{objective} {number}")
            )


def _killed_from_outside(lab: Lab, command: Command, seed: str, aimed: bool, place: Path) -> None:
    chance = random.Random(seed)
    trial = trials.start(command, place)
    if aimed:
        _await_saves(trial, place, chance.randint(1, 5))
        time.sleep(chance.uniform(0, 0.015))
    else:
        time.sleep(chance.uniform(0.02, 1.5))
    trial.kill()
    expect(trial.wait().code in (-9, 0), "neither killed nor at its end")
    all_whole(place)
    lab.go_on(command, place)


def _await_saves(trial: trials.Trial, place: Path, count: int) -> None:
    """Until the run is in its save of that number; or at its end."""
    seen: set[str] = set()
    while trial.running and len(seen) < count:
        seen.update(path.name for path in (place / "run/checkpoints").glob(".saving-*"))
        time.sleep(0.0005)


def _killed_deep(lab: Lab, command: Command, seed: str, place: Path) -> None:
    chance = random.Random(f"deep {seed}")
    for depth in range(6):
        trial = trials.start([*command, *(["--resume", "auto"] if depth else [])], place)
        time.sleep(chance.uniform(0.3, 0.9))
        trial.kill()
        expect(trial.wait().code in (-9, 0), f"neither killed nor at its end, {depth} deep")
        all_whole(place)
    lab.go_on(command, place)


# --- stopped ---------------------------------------------------------------------------------------------------------


def matrix(lab: Lab) -> Iterator[Case]:
    for objective, workers, accumulated, other in product(MODELS, (0, 2), (1, 3), (False, True)):
        shape = ["--set", f"train.dataloader_num_workers={workers}", "--grad-accum", accumulated]
        if objective == "seq2seq":
            shape += ["--batch-tokens", 48] if other else []
        else:
            # packed rows are fewer
            shape += ["--packing", "-L", 24, "-b", 2] if other else []
        command = lab.command(objective, *shape)
        for place in ("middle of epoch 1", "edge of the epochs", "middle of epoch 2", "last step"):
            name = f"{objective}, {' '.join(str(word) for word in shape)}, {place}"
            yield Case(name, partial(_stopped_at, lab, command, place, accumulated))


def _stopped_at(lab: Lab, command: Command, where: str, accumulated: int, place: Path) -> None:
    end, _ = lab.undisturbed(command)
    last = max(line[0] for line in end.losses)
    epoch = last // 2
    step = {
        "middle of epoch 1": epoch // 2 + 1,
        "edge of the epochs": epoch + 1,
        "middle of epoch 2": epoch + epoch // 2 + 1,
        "last step": last,
    }[where]
    expect(
        last % 2 == 0 and epoch // 2 > 0 and epoch + epoch // 2 + 1 < last,
        f"{last} steps cannot be stopped at four places",
    )
    # In the middle of a step, where it has one.
    nth = 2 if accumulated > 1 and where.startswith("middle") else 1
    outcome = trials.run(command, place, trials.signals_at("step", signal.SIGTERM, nth, step - 1))
    expect(outcome.code == 143, f"stopped, it ended with {outcome.code}: {last_words(outcome)}")
    expect(step - 1 in steps_saved(place), f"no checkpoint of step {step - 1}: {steps_saved(place)}")
    all_whole(place)
    lab.go_on(command, place)


def signals(lab: Lab) -> Iterator[Case]:
    """At each moment at its first, and ever later times."""
    times = {
        "preparation": (1, 1, 1, 1),
        "step": (1, 6, 13, 24),
        "evaluation": (1, 2, 4, 6),
        "generation": (1, 5, 20, 30),
        "save": (1, 2, 3, 4),
    }
    for number, (moment, counts) in product((signal.SIGTERM, signal.SIGINT), times.items()):
        for place, nth in enumerate(counts):
            objective = "seq2seq" if moment == "generation" else [*MODELS][place % 3]
            name = f"{number.name}, {objective}, {moment} {nth}"
            yield Case(name, partial(_signalled, lab, lab.command(objective), moment, number, nth))


def _signalled(lab: Lab, command: Command, moment: str, number: int, nth: int, place: Path) -> float:
    log = place / "sent"
    outcome = trials.run(command, place, trials.signals_at(moment, number, nth, log=log))
    ended = time.time()
    expect(log.exists(), f"the moment did not come; it ended with {outcome.code}")
    took = ended - float(log.read_text())
    expect(outcome.code == 128 + number, f"it ended with {outcome.code}: {last_words(outcome)}")
    expect(took <= SAVED_BY, f"it took {took:.1f} s to end")
    all_whole(place)
    lab.go_on(command, place)
    return took


# --- not finite ------------------------------------------------------------------------------------------------------


def nonfinite(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        command = lab.command(objective)
        for route in ("weights", "gradient", "overflow", "learning_rate"):
            # A learning rate can break a step only by the update of the one before.
            for step in (2 if route == "learning_rate" else 1, 7, LAST):
                yield Case(f"{objective}, {route}, step {step}", partial(_broken, command, route, step))
        for step in (2, 7, LAST):
            yield Case(f"{objective}, checkpoint, step {step}", partial(_broken_checkpoint, lab, command, step))


def _broken(command: Command, route: str, step: int, place: Path) -> None:
    _broke_down(trials.run(command, place, trials.breaks_at(step, route)), step, place)


def _broken_checkpoint(lab: Lab, command: Command, step: int, place: Path) -> None:
    lab.stopped_before(step, command, place)
    saved = place / f"run/checkpoints/checkpoint-{step - 1}"
    poison(saved)
    expect(not checkpoint.damage(saved), "the poisoned checkpoint does not pass for whole")
    _broke_down(trials.run([*command, "--resume", "auto"], place), step, place)


def poison(saved: Path) -> None:
    """A NaN among the weights of a checkpoint, which is sealed anew."""
    identity = json.loads((saved / checkpoint.MANIFEST).read_text("utf-8"))["identity"]
    weights = saved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:header])
    # One that every token passes through; a row of an embedding may not be read.
    name = next(n for n in sorted(tensors) if "norm" in n.lower() or "ln_" in n)
    begin = header + tensors[name]["data_offsets"][0]
    content[begin : begin + 4] = b"\x00\x00\xc0\x7f"  # NaN, as little-endian float32
    weights.write_bytes(content)
    checkpoint.seal(saved, checkpoint.step_of(saved), identity)


def _broke_down(outcome: trials.Outcome, step: int, place: Path) -> None:
    expect(outcome.code == 6, f"it ended with {outcome.code}: {last_words(outcome)}")
    expect(f"of step {step} is not a finite" in outcome.err, f"not at step {step}: {last_words(outcome)}")
    expect("rows of the step: '" in outcome.err, "no rows are named")
    expect(not [saved for saved in steps_saved(place) if saved >= step], f"checkpoints {steps_saved(place)}")
    lines = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    expect(lines[-1].get("rows") and lines[-1]["step"] == step, "no rows in metrics.jsonl")
    all_whole(place)
    expect(not leftovers(place), f"left: {leftovers(place)}")


def masked(lab: Lab) -> Iterator[Case]:
    for objective, step in product(MODELS, (1, 7, LAST)):
        yield Case(f"{objective}, step {step}", partial(_masked, lab.command(objective), step))


def _masked(command: Command, step: int, place: Path) -> None:
    outcome = trials.run(command, place, trials.breaks_at(step, "all_masked"))
    expect(outcome.code == 0, f"it ended with {outcome.code}: {last_words(outcome)}")
    losses = {line[0]: line[1] for line in End.of(place / "run").losses if line[1] is not None}
    expect(losses[step] == 0, f"loss {losses[step]}")
    expect(all(losses[other] > 0 for other in losses if other != step), "another loss is 0")
    expect(all_finite(place / "run/model.safetensors"), "a weight is not finite")


def all_finite(weights: Path) -> bool:
    from safetensors.numpy import load_file

    return all(bool((abs(tensor) < float("inf")).all()) for tensor in load_file(weights).values())


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        for rows in (16, 8, 4, 2, 1):
            yield Case(f"{objective}, {rows} rows fit", partial(_retreated, lab, objective, rows))
        yield Case(f"{objective}, no row fits", partial(_too_much, lab, objective))


def _retreated(lab: Lab, objective: str, rows: int, place: Path) -> float:
    expected, _ = lab.undisturbed(lab.command(objective, "-b", rows, "--grad-accum", 16 // rows, "--epochs", 4))
    command = lab.command(objective, "-b", 16, "--grad-accum", 1, "--epochs", 4)
    outcome = trials.run(command, place, trials.out_of_memory_above(rows))
    expect(outcome.code == 0, f"it ended with {outcome.code}: {last_words(outcome)}")
    expect(("out of memory with" in outcome.err) == (rows < 16), "the retreat is not told of as it was")
    ours, theirs = ({step: loss for step, loss, _ in end.losses if loss} for end in (End.of(place / "run"), expected))
    expect([*ours] == [*theirs], f"steps {[*ours]} instead of {[*theirs]}")
    worst = max(abs(ours[step] / theirs[step] - 1) for step in ours)
    expect(worst <= 1e-6, f"a loss is off by {worst:.1e}")
    return worst


def _too_much(lab: Lab, objective: str, place: Path) -> None:
    command = lab.command(objective, "-b", 16, "--grad-accum", 1)
    outcome = trials.run(command, place, trials.out_of_memory_above(0))
    expect(outcome.code == 5, f"it ended with {outcome.code}: {last_words(outcome)}")
    lines = [line.removeprefix("lmtrain: ") for line in outcome.err.splitlines()]
    expect(len([line for line in lines if line.startswith("--") and ": " in line]) == 3, "not three suggestions")


# --- damaged ---------------------------------------------------------------------------------------------------------


def flips(lab: Lab) -> Iterator[Case]:
    _, run = lab.undisturbed(lab.command("clm"))
    saved, other = sorted((run / "checkpoints").glob("checkpoint-*"), key=checkpoint.step_of, reverse=True)[:2]
    chance = random.Random(0)
    files = sorted(path.name for path in saved.iterdir())
    for number in range(100):
        name = chance.choice(files)
        bit = chance.randrange(8 * (saved / name).stat().st_size)
        yield Case(f"{number}: bit {bit} of {name}", partial(_damaged, saved, name, partial(flip, bit)))
    for name, (what, change) in product(files, CHANGES.items()):
        yield Case(f"{name} {what}", partial(_damaged, saved, name, change))
    for name in files:
        if (saved / name).read_bytes() != (other / name).read_bytes():
            attempt = partial(_damaged, saved, name, partial(swap, other / name), named=name != checkpoint.MANIFEST)
            yield Case(f"{name} of another step", attempt)
    for name, what in (
        ("model.safetensors", "a bit"),
        ("resume.json", "missing"),
        (checkpoint.MANIFEST, "empty"),
        ("resume.safetensors", "half"),
    ):
        yield Case(f"{name} {what}, by the command line", partial(_damaged_and_resumed, lab, name, what))


def flip(bit: int, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def swap(other: Path, path: Path) -> None:
    shutil.copyfile(other, path)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": partial(os.truncate, length=0),
    "half": halve,
}


def _damaged(saved: Path, name: str, change: Callable[[Path], None], place: Path, named: bool = True) -> None:
    copy = shutil.copytree(saved, place / saved.name)
    expect(checkpoint.damage(copy) is None, "damaged before")
    change(copy / name)
    wrong = checkpoint.damage(copy)
    expect(wrong, "not noticed")
    expect(not named or name in str(wrong), f"named otherwise: {wrong}")


def _damaged_and_resumed(lab: Lab, name: str, what: str, place: Path) -> None:
    command = lab.command("clm")
    lab.stopped_before(8, command, place)
    saved = place / "run/checkpoints/checkpoint-7"
    (partial(flip, 80_000) if what == "a bit" else CHANGES[what])(saved / name)
    outcome = trials.run([*command, "--resume", saved], place)
    expect(outcome.code == 3, f"by its path: it ended with {outcome.code}: {last_words(outcome)}")
    expect(name in outcome.err, f"{name} is not named: {last_words(outcome)}")
    outcome = lab.go_on(command, place)
    expect("skipping checkpoint-7" in outcome.err, "auto does not say that it passes over it")


# --- disk ------------------------------------------------------------------------------------------------------------


def full(lab: Lab) -> Iterator[Case]:
    command = lab.command("clm")
    writing = [
        point
        for point in _saves(_points(lab, command, trials.CHECKPOINTS), 3)
        if point.operation in trials.FILLING and not point.name.startswith(".removing")
    ]
    for point in spread(writing, 10):
        yield Case(f"{point.operation} {point.name}", partial(_full, lab, command, point.number))
    yield Case("a disk of 16 MB", partial(_small_disk, lab, command))
    yield Case("files of 60 kB at most", partial(_limited, lab, command))


def _full(lab: Lab, command: Command, number: int, place: Path) -> None:
    _ran_out(trials.run(command, place, trials.full_at("run", number)), place)
    expect(steps_saved(place), "no checkpoint of before")
    lab.go_on(command, place)


def _ran_out(outcome: trials.Outcome, place: Path) -> None:
    expect(outcome.code == 7, f"it ended with {outcome.code}: {last_words(outcome)}")
    expect(not list((place / "run/checkpoints").glob(".saving-*")), "half a checkpoint is left")
    all_whole(place)


def _small_disk(lab: Lab, command: Command, place: Path) -> None:
    """Somebody else fills the disk once the first checkpoint is saved."""
    with trials.small_disk(place / "disk", 16_000):
        trial = trials.start(command, place / "disk")
        while trial.running and not steps_saved(place / "disk"):
            time.sleep(0.001)
        ballast = place / "disk/ballast"
        _fill(ballast)
        _ran_out(trial.wait(), place / "disk")
        expect(steps_saved(place / "disk"), "no checkpoint of before")
        ballast.unlink()
        lab.go_on(command, place / "disk")


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)):
                pass
    except OSError:
        pass  # to the brim


def _limited(lab: Lab, command: Command, place: Path) -> None:
    _ran_out(trials.run(command, place, trials.limited(60_000)), place)
    lab.go_on(command, place)


# --- one folder, many processes --------------------------------------------------------------------------------------


def lock(lab: Lab) -> Iterator[Case]:
    for number in range(20):
        yield Case(f"round {number}", partial(_at_once, lab))
    yield Case("taken over from a killed run", partial(_taken_over, lab))


def _at_once(lab: Lab, place: Path) -> float:
    # Long enough that the last one comes before the first has ended.
    command = lab.command("clm", "--epochs", 12)
    running = [trials.start(command, place) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(trials.Trial.wait, running))
    codes = sorted(outcome.code for outcome in outcomes)
    expect(codes == [0] + [7] * 7, f"exit codes {codes}")
    winner = next(trial.pid for trial, outcome in zip(running, outcomes, strict=True) if outcome.code == 0)
    losers = [outcome for outcome in outcomes if outcome.code == 7]
    for outcome in losers:
        expect(
            f"in use by process {winner} on {platform.node()}" in outcome.err,
            f"owner not named: {last_words(outcome)}",
        )
    slowest = max(outcome.seconds for outcome in losers)
    expect(slowest < 10, f"refused after {slowest:.0f} s")
    lab.undisturbed(command)[0].check(place / "run")
    return slowest


def _taken_over(lab: Lab, place: Path) -> None:
    command = lab.command("clm")
    trial = trials.start(command, place)
    while trial.running and not steps_saved(place):
        time.sleep(0.001)
    trial.kill()
    expect(trial.wait().code == -9, "not killed")
    expect((place / "run/.lock").exists(), "a killed run left no lock: nothing is tried here")
    lab.go_on(command, place)


# --- drift -----------------------------------------------------------------------------------------------------------

SIZES = TINY["gpt2"]
CHANGED: dict[str, Command] = {
    "model.config": ["--model-config", SIZES.replace("n_layer=2", "n_layer=3")],
    "model.tokenizer": ["--tokenizer", "bpe:290"],
    "data.max_length": ["-L", 32],
    "data.packing": ["--packing"],
    "data.val_split": ["--val-split", 0.1],
    "train.seed": ["--seed", 7],
    "train.batch_size": ["-b", 2],
    "train.grad_accum": ["--grad-accum", 4],
    "train.learning_rate": ["--lr", 2e-3],
    "train.lr_scheduler": ["--lr-scheduler", "cosine"],
    "train.weight_decay": ["--weight-decay", 0.1],
    "train.max_grad_norm": ["--max-grad-norm", 0.5],
    "eval.best_metric": ["--best-metric", "token_accuracy"],
    "train.keep": ["--keep", 5],
    "train.dataloader_num_workers": ["--set", "train.dataloader_num_workers=1"],
}


def drifts(lab: Lab) -> Iterator[Case]:
    for name, flags in CHANGED.items():
        yield Case(name, partial(_drifted, lab, name, flags))
    for what in ("one byte", "one row more", "another order"):
        yield Case(f"data, {what}", partial(_other_data, lab, what))


def _drifted(lab: Lab, name: str, flags: Command, place: Path) -> None:
    command = lab.command("clm")
    lab.stopped_before(8, command, place)
    if name in compatibility.MAY_CHANGE:
        lab.go_on(command, place, *flags)
    else:
        # A flag is given once.
        kept = [word for word in command if word != "--no-packing" or "--packing" not in flags]
        _refused(name, trials.run([*kept, *flags, "--resume", "auto"], place), place)
        lab.go_on(command, place)


def _refused(name: str, outcome: trials.Outcome, place: Path) -> None:
    expect(outcome.code == 2, f"it ended with {outcome.code}: {last_words(outcome)}")
    expect(f"--resume: {name} " in outcome.err, f"not named: {last_words(outcome)}")
    expect("step 8" not in outcome.err, "not before the first step")
    expect(steps_saved(place)[-1] == 7, f"checkpoints {steps_saved(place)}")


def _other_data(lab: Lab, what: str, place: Path) -> None:
    data = Path(shutil.copy(lab.data("clm"), place / "text.jsonl"))
    command = lab.command("clm", data=data)
    lab.stopped_before(8, command, place)
    before = data.read_text("utf-8")
    lines = before.splitlines()
    data.write_text(
        {
            "one byte": before.replace("cat", "cut", 1),
            "one row more": before + '{"text": "one row more"}\n',
            "another order": "\n".join([lines[1], lines[0], *lines[2:]]) + "\n",
        }[what],
        "utf-8",
    )
    _refused("data.train", trials.run([*command, "--resume", "auto"], place), place)
    data.write_text(before, "utf-8")
    lab.go_on(command, place)


# --- the same once more ----------------------------------------------------------------------------------------------


def determinism(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        yield Case(objective, partial(_once_more, lab.command(objective)))


def _once_more(command: Command, place: Path) -> None:
    """Five real processes, as different as a user may start them; and a sixth with another seed."""
    reached = []
    for number, language in enumerate(["C", "C.UTF-8", "POSIX", "en_US.UTF-8", "tr_TR.UTF-8"]):
        folder = place / f"in {number}"
        folder.mkdir()
        # The last two find the cache of the first.
        cache = str(place / "cache" if number in (0, 3, 4) else folder / "cache")
        reached.append(_really(command, folder, PYTHONHASHSEED=str(number), LC_ALL=language, XDG_CACHE_HOME=cache))
    expect(all(end == reached[0] for end in reached), f"weights {[end.weights[:8] for end in reached]}")
    other = place / "other"
    other.mkdir()
    expect(_really([*command, "--seed", 7], other).weights != reached[0].weights, "another seed changes nothing")


def _really(command: Command, folder: Path, **environment: str) -> End:
    told = os.environ | trials.QUIET | {"PYTHONPATH": str(ROOT)} | environment
    words = [sys.executable, "-m", "lmtrain", *(str(word) for word in command)]
    done = subprocess.run(words, cwd=folder, env=told, capture_output=True, check=False, timeout=300)
    expect(done.returncode == 0, f"it ended with {done.returncode}: {done.stderr.decode()[-300:]}")
    return End.of(folder / "run")


# --- long ------------------------------------------------------------------------------------------------------------


def soak(lab: Lab) -> Iterator[Case]:
    for objective in MODELS:
        steps = 400 if lab.quick else 2000
        command = lab.command(objective, "--max-steps", steps, "--save-every", 50, "--eval-every", 100)
        yield Case(f"{objective}, {steps:,} steps", partial(_soaked, command))


def _soaked(command: Command, place: Path) -> float:
    import psutil

    temporary = place / "temporary"
    temporary.mkdir()
    trial = trials.start(command, place, env={"TMPDIR": str(temporary)})
    process, samples = psutil.Process(trial.pid), []
    while trial.running:
        try:
            samples.append((_step_of(place), process.memory_info().rss, process.num_fds()))
        except psutil.Error:
            break  # it has ended
        time.sleep(0.1)
    outcome = trial.wait(1800)
    expect(outcome.code == 0, f"it ended with {outcome.code}: {last_words(outcome)}")
    later = [sample for sample in samples if sample[0] >= 200]
    settled = len(later) // 10 + 1
    growth = median(s[1] for s in later[-settled:]) / median(s[1] for s in later[:settled]) - 1
    expect(growth < 0.05, f"memory grew by {growth:.1%} after step 200")
    # A save or an evaluation has a file open for a moment: what is usual is compared.
    halves = later[: len(later) // 2], later[len(later) // 2 :]
    usual = [Counter(sample[2] for sample in half).most_common(1)[0][0] for half in halves]
    expect(usual[0] == usual[1], f"open files: {usual[0]}, then {usual[1]}")
    expect(
        not leftovers(place) and not list(temporary.iterdir()), f"left: {leftovers(place)} {[*temporary.iterdir()]}"
    )
    return 100 * growth


def _step_of(place: Path) -> int:
    path = place / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines()[-2:] if path.exists() else []
    # The last may be half written.
    return max((json.loads(line)["step"] for line in lines if line.endswith(b"}")), default=0)


# --- running and telling ---------------------------------------------------------------------------------------------

PROGRAMS: dict[str, tuple[Program, str, str]] = {
    "kills": (kills, "killed at every file operation of the 2nd and 3rd save, resumed: identical", ""),
    "ends": (
        ends,
        "killed at every file operation before the first step and after the last save, resumed: identical",
        "",
    ),
    "sigkills": (
        sigkills,
        "SIGKILL from outside at random, half of them in saves, and five deep; resumed: identical",
        "",
    ),
    "matrix": (
        matrix,
        "stopped at 4 places × workers × accumulation × packing or token batches; resumed: identical",
        "",
    ),
    "signals": (
        signals,
        "SIGTERM and SIGINT at every moment: 143, 130, in time; resumed: identical",
        "slowest end {:.2f} s after the signal",
    ),
    "nonfinite": (nonfinite, "what is not finite: exit 6 at that step, rows named, no checkpoint of it", ""),
    "masked": (masked, "a step without a supervised token: loss 0, finite weights", ""),
    "memory": (
        memory,
        "out of memory: the losses of a batch that fits, or exit 5 with three suggestions",
        "largest relative difference {:.1e}",
    ),
    "flips": (flips, "flipped bits; files missing, empty, half, of another step: named, refused or passed over", ""),
    "full": (full, "the disk is full in a save: exit 7, what was saved is whole; resumed: identical", ""),
    "lock": (
        lock,
        "8 processes on one run folder: one trains, 7 say who; a dead run's lock is taken over",
        "slowest refusal {:.1f} s",
    ),
    "drift": (drifts, "a changed setting or file is refused by name before the first step, or may change", ""),
    "determinism": (determinism, "5 processes with other hash seeds, folders, languages, caches: identical", ""),
    "soak": (
        soak,
        "2,000 steps, a checkpoint every 50: memory, open files and temporary folders",
        "most growth of memory {:.1f} %",
    ),
}
ALONE = ("lock", "soak", "signals")
"""Programs that measure time or memory, or are several processes anyway: one trial after the other."""
FEW = 4


def spread(things: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly, the first and the last among them."""
    if len(things) <= count:
        return list(things)
    return [things[round(place * (len(things) - 1) / (count - 1))] for place in range(count)]


def try_program(name: str, lab: Lab, jobs: int, only: str = "") -> dict[str, Any]:
    """Run its trials, or those whose name holds `only`; how they came out."""
    began, (program, _, measure) = time.monotonic(), PROGRAMS[name]
    try:
        cases = list(program(lab))
        named = [case for case in cases if only in case.name]
    except Exception as error:
        named = cases = [Case("preparing the trials", partial(_raise, error))]
    chosen = spread(named, FEW) if lab.quick else named
    with ThreadPoolExecutor(1 if name in ALONE else jobs) as pool:
        results = list(pool.map(partial(try_case, name, lab), chosen))
    measured = [value for _, value, _ in results if value is not None]
    bad = [
        {"name": case.name, "kind": kind, "reason": reason}
        for case, (kind, _, reason) in zip(chosen, results, strict=True)
        if kind != "passed"
    ]
    return {
        "trials": len(chosen),
        "passed": len(chosen) - len(bad),
        "bad": bad,
        "of": len(cases),
        "seconds": round(time.monotonic() - began),
        "note": measure.format(max(measured)) if measure and measured else "",
        "machine": machine(),
    }


def _raise(error: Exception, place: Path) -> None:
    raise error


def try_case(program: str, lab: Lab, case: Case) -> tuple[str, float | None, str]:
    """(passed, failed or not made; what was measured; the reason)."""
    place = Path(tempfile.mkdtemp(prefix="trial-", dir=lab.folder))
    kind, measured, reason = "passed", None, ""
    try:
        measured = case.attempt(place)
    except trials.CannotBeMade as error:
        kind, reason = "not made", str(error)
    except Failed as error:
        kind, reason = "failed", str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind, reason = (
            "failed",
            f"{type(error).__name__}: {error} (line {where.lineno} of {Path(where.filename).name})",
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if kind != "passed":
        print(f"{program}: {case.name}: {kind}: {reason}", file=sys.stderr, flush=True)
    return kind, measured, reason


def machine() -> str:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return f"{os.cpu_count()} CPU cores, {gigabytes:.0f} GiB; python {platform.python_version()}, {libraries}"


def cell(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")


def report(results: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {what} | {result['trials']} | {result['passed']} | {result['seconds']} | {result['note']} |"
        for name, (_, what, _) in PROGRAMS.items()
        if (result := results.get(name))
    ]
    missing = [name for name in PROGRAMS if name not in results]
    bad = [
        f"- {name}: {cell(one['name'])}: {one['kind']}: {cell(one['reason'])}"
        for name in PROGRAMS
        if name in results
        for one in results[name]["bad"]
    ]
    machines = sorted({result["machine"] for result in results.values()})
    return f"""# Endurance, as measured

{"; ".join(machines)}. `python tests/stress/endurance.py` made this table; three objectives, tiny models with dropout.
{f"Not run: {', '.join(missing)}." if missing else "Every program was run."}

| program | what | trials | passed | seconds | |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## Not as they must be

{chr(10).join(bad) or "None."}
"""


def keep(name: str, result: dict[str, Any]) -> None:
    """Its row alone is replaced."""
    raw = ROOT / "benchmarks" / "endurance.json"
    results = json.loads(raw.read_text("utf-8")) if raw.exists() else {}
    results[name] = result
    raw.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    raw.with_suffix(".md").write_text(report(results), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--quick", action="store_true", help=f"{FEW} trials of each; writes no report")
    parser.add_argument("--only", default="", metavar="WORD", help="trials whose name holds it; writes no report")
    arguments = parser.parse_args()
    if unknown := set(arguments.programs) - set(PROGRAMS):
        parser.error(f"no program {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    results = {}
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        os.environ["COLUMNS"] = "200"
        for name in arguments.programs or PROGRAMS:
            lab = Lab(Path(tempfile.mkdtemp(dir=folder)), arguments.quick)
            result = results[name] = try_program(name, lab, arguments.jobs, arguments.only)
            print(
                f"{name}: {result['passed']} of {result['trials']} in {result['seconds']} s {result['note']}",
                flush=True,
            )
            if not (arguments.quick or arguments.only):
                keep(name, result)
            shutil.rmtree(lab.folder, ignore_errors=True)
    return 1 if any(one["kind"] == "failed" for result in results.values() for one in result["bad"]) else 0


if __name__ == "__main__":
    sys.exit(main())
