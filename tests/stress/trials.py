"""`lmtrain` in processes of their own that start at once, and the faults that befall them.

A server imports everything once; every trial is forked from it, with a folder, an environment and files for its output
of its own. It is a whole process: it can be killed, and its exit code is that of `python -m lmtrain`. Only what Python
decides at its start is shared by all trials, such as the seed of its hashes.

`before` is called in the trial, ahead of the command line, and must survive pickling: all the faults below do.
"""

import atexit
import builtins
import errno
import gc
import importlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PRELOADED = [
    "lmtrain.cli.app",
    "lmtrain.api",
    "lmtrain.training.run",
    "lmtrain.data.corpus",
    "lmtrain.runs.checkpoint",
    "ruamel.yaml",
    "sacrebleu",
    "rouge_score.rouge_scorer",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.bert.modeling_bert",
    "transformers.models.t5.modeling_t5",
]
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What libraries read as they are imported. A process with several threads must not be forked."""

CHECKPOINTS = "checkpoints"
"""Where a run folder has them."""

Fault = Callable[[], None]


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a trial; `code` is -9 for one that was killed by signal 9."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


class Trial:
    """A command that runs."""

    def __init__(self, process: Any, folder: Path):
        self.process, self.folder, self.began = process, folder, time.monotonic()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def read(self, name: str = "err") -> str:
        """What it has written so far."""
        return (self.folder / name).read_bytes().decode("utf-8", "backslashreplace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> Outcome:
        """Wait for its end. Raises TimeoutError, after killing it."""
        self.process.join(timeout)
        late = self.running
        if late:
            self.kill()
            self.process.join()
        outcome = Outcome(self.process.exitcode, self.read("out"), self.read("err"), time.monotonic() - self.began)
        shutil.rmtree(self.folder, ignore_errors=True)
        if late:
            raise TimeoutError(f"still running after {timeout:.0f} s; its last words: {outcome.err[-300:]}")
        return outcome


_starting = threading.Lock()


def start(
    arguments: Sequence[Any], cwd: Path | str = ".", before: Fault | None = None, env: Mapping[str, str] | None = None
) -> Trial:
    """Start `lmtrain ARGUMENTS` in the folder `cwd`; `env` is added to the environment."""
    folder = Path(tempfile.mkdtemp(prefix="trial-"))
    words = [str(argument) for argument in arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LMTRAIN_")}
    told = (words, str(Path(cwd).resolve()), str(folder), before, environment | QUIET | dict(env or {}))
    with _starting:
        context = _server()
        process = context.Process(target=_live, args=told, daemon=False)
        with _nameless_main():
            process.start()
        # Else the start of the next trial, in another thread, polls this one too, and one of the two never sees its exit code.
        multiprocessing.process._children.discard(process)
    return Trial(process, folder)


def run(
    arguments: Sequence[Any],
    cwd: Path | str = ".",
    before: Fault | None = None,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """`start` and `wait`."""
    return start(arguments, cwd, before, env).wait(timeout)


def _server() -> Any:
    """The context of the server, which is started with our environment if it does not run yet."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stress"), os.environ.get("PYTHONPATH", "")])
    kept = dict(os.environ)
    os.environ.update({**QUIET, "PYTHONPATH": path})
    try:
        context.set_forkserver_preload([__name__, *PRELOADED])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return context


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Else every trial would import once more what has started it: pytest, or a benchmark."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _live(words: list[str], cwd: str, folder: str, before: Fault | None, environment: dict[str, str]) -> None:
    """Be that process from its start to its end."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    _redirect(Path(folder))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _forget_chance()
    gc.unfreeze()
    sys.argv = ["lmtrain", *words]
    from lmtrain.cli.app import app

    try:
        if before:
            before()
        app(prog_name="lmtrain")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # as Python itself ends
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def _redirect(folder: Path) -> None:
    # Both append, as what several processes write would else overwrite one another.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, opened in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(folder / "out", flags)),
        (2, os.open(folder / "err", flags)),
    ):
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _forget_chance() -> None:
    """A fork inherits the generators' states; processes that are started do not."""
    import numpy as np

    random.seed()
    np.random.seed()


def together(*faults: Fault) -> Fault:
    """Several at once."""
    return partial(_all, faults)


def _all(faults: Sequence[Fault]) -> None:
    for fault in faults:
        fault()


# --- operations on files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A moment at which a process can die, or the disk be full.

    `operation` is mkdir, create, half, whole, fsync, rename, renamed, unlink, rmdir or removed: half and whole are
    those of a file that was written, renamed and removed come after what they name. `step` is that of the training.
    """

    number: int
    operation: str
    name: str
    step: int


Act = Callable[[Point, Callable[[], None]], None]
"""What happens at a point; told also how to cut the file that has just been written to its half."""


class _Points:
    """Counts the operations on files under a folder, of this process alone."""

    def __init__(self, folder: Path | str, act: Act):
        self.folder, self.act, self.process = _full(folder), act, os.getpid()
        self.number, self.busy = 0, False

    def covers(self, path: Any) -> bool:
        return _full(path).is_relative_to(self.folder)

    def reach(self, operation: str, path: Any, cut: Callable[[], None] = lambda: None) -> None:
        if self.busy or os.getpid() != self.process or not self.covers(path):
            return
        self.number += 1
        self.busy = True  # what happens at a point is none
        try:
            name = _full(path).relative_to(self.folder).as_posix()
            self.act(Point(self.number, operation, name, _step()), cut)
        finally:
            self.busy = False


_trainers: list[Any] = []
"""The one that trains, once it does."""


def _step() -> int:
    return _trainers[0].state.global_step if _trainers else 0


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def _watch_files(folder: Path | str, act: Act) -> None:
    """Call `act` at every operation on files under `folder`."""
    points = _Points(folder, act)
    _see_steps()
    _patch(io, "open", partial(_opening, points))
    builtins.open = io.open
    _patch(os, "write", partial(_writing, points))
    _patch(os, "fsync", partial(_syncing, points))
    for name in ("replace", "rename"):
        _patch(os, name, partial(_renaming, points))
    for name in ("unlink", "remove"):
        _patch(os, name, partial(_removing, points, "unlink"))
    _patch(os, "rmdir", partial(_removing, points, "rmdir"))
    _patch(os, "mkdir", partial(_making, points))
    _watch_libraries(points)


def _see_steps() -> None:
    from lmtrain.training.trainer import ExactTrainer

    def watched(real: Any) -> Any:
        @wraps(real)
        def step(self: Any, *arguments: Any, **options: Any) -> Any:
            _trainers[:] = [self]
            return real(self, *arguments, **options)

        return step

    _patch(ExactTrainer, "get_batch_samples", watched)


def _opening(points: _Points, real: Any) -> Any:
    @wraps(real)
    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        named = isinstance(file, str | bytes | os.PathLike)
        if not named or not set("wax+") & set(mode) or not points.covers(file):
            return real(file, mode, *arguments, **options)
        begun = _size(file) if "a" in mode else 0
        points.reach("create", file)
        stream = real(file, mode, *arguments, **options)
        close = stream.close

        def closed() -> None:
            if not stream.closed:
                close()
                _written(points, file, begun)

        stream.close = closed
        return stream

    return opened


def _written(points: _Points, path: Any, begun: int = 0) -> None:
    points.reach("half", path, partial(_cut, path, begun))
    points.reach("whole", path)


def _cut(path: Any, begun: int) -> None:
    os.truncate(path, begun + (_size(path) - begun) // 2)


def _writing(points: _Points, real: Any) -> Any:
    @wraps(real)
    def write(descriptor: int, data: Any) -> int:
        path = _path_of(descriptor)
        if not points.covers(path):
            return real(descriptor, data)
        begun = _size(path)
        points.reach("create", path)
        count = real(descriptor, data)
        _written(points, path, begun)
        return count

    return write


def _full(path: Any) -> Path:
    return Path(os.fsdecode(path)).absolute()


def _size(path: Any) -> int:
    return _full(path).stat().st_size if _full(path).exists() else 0


def _path_of(descriptor: int) -> Path:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return Path(os.devnull)


def _syncing(points: _Points, real: Any) -> Any:
    @wraps(real)
    def fsync(file: Any) -> None:
        points.reach("fsync", _path_of(file if isinstance(file, int) else file.fileno()))
        real(file)

    return fsync


def _renaming(points: _Points, real: Any) -> Any:
    @wraps(real)
    def rename(source: Any, target: Any, **options: Any) -> None:
        points.reach("rename", source)
        real(source, target, **options)
        points.reach("renamed", target)

    return rename


def _removing(points: _Points, operation: str, real: Any) -> Any:
    @wraps(real)
    def remove(path: Any, *, dir_fd: int | None = None) -> None:
        full = path if dir_fd is None else _path_of(dir_fd) / os.fsdecode(path)
        points.reach(operation, full)
        real(path, dir_fd=dir_fd)
        if operation == "rmdir":
            points.reach("removed", full)

    return remove


def _making(points: _Points, real: Any) -> Any:
    @wraps(real)
    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if points.covers(path) and not _full(path).exists():
            points.reach("mkdir", path)
        real(path, *arguments, **options)

    return mkdir


def _watch_libraries(points: _Points) -> None:
    """Those that write without Python."""
    import safetensors.torch
    import torch
    from safetensors import SafetensorError
    from transformers import PreTrainedTokenizerFast

    def by(place: Callable[..., Any], failure: Callable[[str], Exception], real: Any) -> Any:
        @wraps(real)
        def write(*arguments: Any, **options: Any) -> Any:
            path = place(*arguments, **options)
            if not isinstance(path, str | os.PathLike):
                return real(*arguments, **options)
            try:
                points.reach("create", path)
                result = real(*arguments, **options)
                _written(points, path)
            except OSError as error:
                raise failure(f"I/O error: {error.strerror} (os error {error.errno})") from None
            return result

        return write

    # Every copy of `save_file`, by whatever name it was imported, calls this.
    _patch(safetensors.torch, "serialize_file", partial(by, lambda data, path, *_, **__: path, SafetensorError))
    _patch(torch, "save", partial(by, lambda data, path, *_, **__: path, RuntimeError))
    owner = next(c for c in PreTrainedTokenizerFast.__mro__ if "_save_pretrained" in vars(c))
    _patch(
        owner,
        "_save_pretrained",
        partial(by, lambda self, save_directory, *_, **__: Path(save_directory) / "tokenizer.json", Exception),
    )


def dies_at(folder: Path | str, number: int | None, log: Path | str | None = None, within: str = CHECKPOINTS) -> Fault:
    """The process kills itself at operation `number` on the checkpoints of the run `folder`; at a half with half of
    the file.

    Without a `number` it lives. Every point that is reached is written into `log`, for `points` to read. `within`
    "." counts those on the whole run folder.
    """
    return partial(_dies_at, str(Path(folder, within)), number, log and str(log))


def _dies_at(folder: str, number: int | None, log: str | None) -> None:
    def act(point: Point, cut: Callable[[], None]) -> None:
        if log:
            with Path(log).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(vars(point)) + "\n")
        if point.number == number:
            cut()
            os.kill(os.getpid(), signal.SIGKILL)

    _watch_files(folder, act)


def points(log: Path | str, save: int | None = None) -> list[Point]:
    """What `dies_at` has written; with `save` those of the training's save of that number, from 1."""
    found = [Point(**json.loads(line)) for line in Path(log).read_text(encoding="utf-8").splitlines()]
    if save is None:
        return found
    steps = sorted({point.step for point in found if point.step})
    return [point for point in found if point.step == steps[save - 1]]


FILLING = ("mkdir", "create", "half", "fsync")
"""Operations that a full disk lets fail."""


def full_at(folder: Path | str, number: int) -> Fault:
    """From operation `number` on, whatever is written to the checkpoints of the run `folder` fails as on a full disk."""
    return partial(_full_at, str(Path(folder, CHECKPOINTS)), number)


def _full_at(folder: str, number: int) -> None:
    def act(point: Point, cut: Callable[[], None]) -> None:
        if point.number >= number and point.operation in FILLING:
            cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(Path(folder, point.name)))

    _watch_files(folder, act)


class CannotBeMade(Exception):
    """This machine does not let the trial be made."""


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of that size at `folder`, which is made; gives how to change its size. Raises CannotBeMade."""
    folder.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            raise CannotBeMade(f"mount: {done.stderr.decode().strip()}")

    mount(f"size={kilobytes}k")
    try:
        yield lambda size: mount(f"remount,size={size}k")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def limited(size: int) -> Fault:
    """No file can become larger than `size` bytes: what is left where nothing may be mounted."""
    return partial(_limited, size)


def _limited(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead of the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# --- memory ----------------------------------------------------------------------------------------------------------


def out_of_memory_above(rows: int, first_step: int = 0, evaluation: bool = False) -> Fault:
    """A forward of more than `rows` rows runs out of memory, from optimiser step `first_step` on.

    Those of evaluation only if it is asked for.
    """
    return partial(_out_of_memory_above, rows, first_step, evaluation)


def _out_of_memory_above(rows: int, first_step: int, evaluation: bool) -> None:
    import torch

    _see_steps()
    texts = note_texts(setattr)

    def called(network: Any, given: list[torch.Tensor]) -> None:
        trains = network.training and torch.is_grad_enabled()
        count = texts[-1] if trains else given[0].shape[0] if given else 0
        if count > rows and _step() + 1 >= first_step and (trains or evaluation):
            raise torch.OutOfMemoryError(f"faked: CUDA out of memory. {count} rows, of which {rows} fit")

    _before_forward(called)


def note_texts(setattr: Callable[..., None]) -> list[int]:
    """Of every batch that is trained from now on, the texts (pairs) in it, which may share rows when the model is called."""
    from lmtrain.training.trainer import ExactTrainer

    texts, concatenated = [0], ExactTrainer.concatenated

    def noted(self: Any, batch: Any) -> Any:
        texts.append(len(batch["labels"]))
        return concatenated(self, batch)

    setattr(ExactTrainer, "concatenated", noted)
    return texts


def _before_forward(called: Callable[[Any, list[Any]], None]) -> None:
    """Call `called` with each model that is called, and the tensors that it is given."""
    import torch
    from transformers import PreTrainedModel

    real = torch.nn.Module.__call__

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        called(self, [t for t in (*arguments, *options.values()) if isinstance(t, torch.Tensor) and t.dim()])
        return real(self, *arguments, **options)

    PreTrainedModel.__call__ = call  # type: ignore[method-assign]


# --- numbers ---------------------------------------------------------------------------------------------------------


def breaks_at(step: int, route: str, log: Path | str | None = None) -> Fault:
    """Something is no longer a number in optimiser step `step`, from 1.

    `route` is where it comes from: weights, gradient, overflow, learning_rate (in the update of the step before) or
    all_masked (no token of the step is supervised). `log` gets the sha256 of the weights before each step and at the end.
    """
    return partial(_breaks_at, step, route, log and str(log))


def _breaks_at(step: int, route: str, log: str | None) -> None:
    from lmtrain.training.trainer import ExactTrainer

    made = _ROUTES[route]
    if log:
        _log_weights(log)
    if route == "all_masked":
        _patch(ExactTrainer, "get_batch_samples", partial(_without_labels, step))
        return

    def breaking(real: Any) -> Any:
        @wraps(real)
        def training_step(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
            undo = made(self, model, step) if self.state.global_step == _early(step, route) - 1 else None
            try:
                return real(self, model, *arguments, **options)
            finally:
                if undo:
                    undo()

        return training_step

    _patch(ExactTrainer, "training_step", breaking)


def _early(step: int, route: str) -> int:
    return step - 1 if route == "learning_rate" else step


def _nan_in_weights(trainer: Any, model: Any, step: int) -> None:
    list(model.parameters())[-1].data.view(-1)[0] = float("nan")


def _nan_in_gradient(trainer: Any, model: Any, step: int) -> Callable[[], None]:
    parameter = next(p for p in model.parameters() if p.requires_grad)
    return parameter.register_hook(lambda gradient: gradient * float("nan")).remove


def _overflow(trainer: Any, model: Any, step: int) -> None:
    """Signs by chance, so that some logit becomes infinite whatever the state is."""
    import torch

    weight = model.get_output_embeddings().weight.data
    chance = torch.Generator().manual_seed(0)
    weight.copy_(3e38 * (torch.randint(0, 2, weight.shape, generator=chance) * 2 - 1))


def _learning_rate(trainer: Any, model: Any, step: int) -> None:
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e20


_ROUTES: dict[str, Any] = {
    "weights": _nan_in_weights,
    "gradient": _nan_in_gradient,
    "overflow": _overflow,
    "learning_rate": _learning_rate,
    "all_masked": None,
}


def _without_labels(step: int, real: Any) -> Any:
    @wraps(real)
    def get_batch_samples(self: Any, batches: Iterator[Any], *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == step - 1:
            batches = ({**batch, "labels": batch["labels"] * 0 - 100} for batch in batches)
        return real(self, batches, *arguments, **options)

    return get_batch_samples


def _log_weights(log: str) -> None:
    from lmtrain.training.trainer import ExactTrainer

    def write(trainer: Any) -> None:
        digest = sha256()
        for parameter in trainer.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": trainer.state.global_step, "weights": digest.hexdigest()}) + "\n")

    def before(real: Any) -> Any:
        @wraps(real)
        def get_batch_samples(self: Any, *arguments: Any, **options: Any) -> Any:
            write(self)
            return real(self, *arguments, **options)

        return get_batch_samples

    def after(real: Any) -> Any:
        @wraps(real)
        def train(self: Any, *arguments: Any, **options: Any) -> Any:
            result = real(self, *arguments, **options)
            write(self)
            return result

        return train

    _patch(ExactTrainer, "get_batch_samples", before)
    _patch(ExactTrainer, "train", after)


# --- signals ---------------------------------------------------------------------------------------------------------


def signals_at(
    moment: str, number: int, nth: int = 1, after: int = 0, folder: Path | str = "run", log: Path | str | None = None
) -> Fault:
    """The process sends itself the signal `number` when a `moment` of MOMENTS comes for the `nth` time.

    Those before `after` optimiser steps are not counted. "operation" is any on the checkpoints of the run `folder`.
    `log` gets the time.time() at which the signal was sent.
    """
    return partial(_signals_at, moment, number, nth, after, str(Path(folder, CHECKPOINTS)), log and str(log))


def _signals_at(moment: str, number: int, nth: int, after: int, folder: str, log: str | None) -> None:
    come = 0

    def reached() -> None:
        nonlocal come
        come += _step() >= after
        if come == nth and _step() >= after:
            come += 1  # once
            if log:
                Path(log).write_text(repr(time.time()), encoding="utf-8")
            os.kill(os.getpid(), number)

    _see_steps()
    if moment == "operation":
        _watch_files(folder, lambda point, cut: reached())
    else:
        module, name = MOMENTS[moment]
        owner: Any = importlib.import_module(module.partition(":")[0])
        for part in module.split(":")[1:]:
            owner = getattr(owner, part)
        _calls(owner, name, reached)


MOMENTS = {
    "preparation": ("lmtrain.training.assembly", "prepare_data"),
    "step": ("lmtrain.training.trainer:ExactTrainer", "training_step"),
    "evaluation": ("lmtrain.modeling.loss:TokenLoss", "score"),
    "generation": ("lmtrain.objectives.generation:Interruptible", "__call__"),  # every token
    "save": ("lmtrain.runs.checkpoint", "seal"),
    "operation": ("", ""),
}
"""Where each is to be seen."""


def _calls(owner: Any, name: str, reached: Callable[[], None]) -> None:
    def seen(real: Any) -> Any:
        @wraps(real)
        def called(*arguments: Any, **options: Any) -> Any:
            reached()
            return real(*arguments, **options)

        return called

    _patch(owner, name, seen)
