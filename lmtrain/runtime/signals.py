"""Ctrl-C and SIGTERM: what they do at each stage of a command.

While there is nothing to save, a signal ends the command at once. During training it is recorded, and `check` stops the
run where it can stop: before a micro-batch, during evaluation, at each generated token. A second signal ends the process
at once.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lmtrain.errors import Interrupted, TakesTooLong

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # not an error: a signal asked for it
    """The run stops here because a signal was received."""


class _State:
    """The signal that this process received. Signals belong to a process, so there is one instance."""

    number: int | None = None
    owner = 0
    """Process id; a forked worker inherits the handlers, but does not stop by itself."""
    notify: Callable[[], None] | None = None
    """Called when a signal is deferred; None while a signal ends the command at once."""
    alone = True
    votes = False
    """Whether this process may stop although others do not yet know: they agree at the end of the block."""


_state = _State()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Turn both signals into Interrupted, which carries the exit code. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.number, _state.owner, _state.notify = None, os.getpid(), None
    with handled_by(_handle):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While open, `handler` receives both signals."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def deferred(notify: Callable[[], None], alone: bool) -> Iterator[None]:
    """During training: record a signal, call `notify`, and let `check` stop the run.

    Processes that train together must stop at the same step: if this one is not `alone`, `check` does nothing, and the
    trainer calls `stop_together` once any process has received a signal.
    """
    _state.notify, _state.alone = notify, alone
    try:
        yield
    finally:
        _state.notify = None


def received() -> int | None:
    """The number of the signal that was received, None if there was none."""
    return _state.number


def check() -> None:
    """Raise Stopped if a signal was received and this process trains alone, or may stop by itself (`agreeing`)."""
    if _state.number and _state.notify and (_state.alone or _state.votes):
        raise Stopped


@contextmanager
def agreeing(agree: Callable[[bool], bool]) -> Iterator[None]:
    """Work in which no process waits for another: `check` stops each by itself, and at the end all stop if one did.

    `agree` gives every process the same answer to whether one of them has stopped.
    """
    stopped = False
    _state.votes = True
    try:
        yield
    except Stopped:
        stopped = True
    finally:
        _state.votes = False
    if agree(stopped):
        stop_together(signal.SIGTERM)


def stop_together(number: int) -> None:
    """Raise Stopped in every process; `number` is the signal for those that did not receive one."""
    _state.number = _state.number or number
    raise Stopped


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TakesTooLong if the block takes longer. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TakesTooLong

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_forwarding(process: subprocess.Popen[bytes], received: Callable[[], None]) -> int:
    """Wait for a process and return its exit code. SIGTERM is forwarded to it; a terminal sends Ctrl-C to both.

    `received` is called at each signal.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        received()
        if number == signal.SIGTERM:
            process.send_signal(number)

    with handled_by(forward):
        code = process.wait()
    return code if code >= 0 else 128 - code


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.number:
        if "LOCAL_RANK" in os.environ:
            return  # the launcher forwards what the terminal sent already: not a second request
        os._exit(128 + number)
    _state.number = number
    if os.getpid() != _state.owner:
        return  # a data-loading worker ends with its run, or at the second signal
    if _state.notify is None:
        raise Interrupted("interrupted; nothing was lost by it", number)
    _state.notify()
