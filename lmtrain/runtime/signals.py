"""Ctrl-C and SIGTERM: what they mean at each moment of a command.

As long as there is nothing to save they end it at once. While a model is trained the wish is kept, and asked for
wherever it can be granted: before a micro-batch, in evaluation, at each token that is generated. A second one ends the
process at once.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmtrain.errors import Interrupted, TakesTooLong

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # not an error: nothing is wrong
    """The wish is granted here."""


class _Wish:
    """Signals come to a process, not to an object: there is one."""

    number: int | None = None
    owner = 0
    say: Callable[[], None] | None = None
    """Says that a wish is kept; None where it ends the process at once."""
    alone = True


_wish = _Wish()


@contextmanager
def listening() -> Iterator[None]:
    """Turn both signals into Interrupted, which has the exit code that is due. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _wish.number, _wish.owner, _wish.say = None, os.getpid(), None
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept(say: Callable[[], None], alone: bool) -> Iterator[None]:
    """While training: keep the wish, `say` so, and let `check` grant it.

    Several processes have to stop together, so if this one is not `alone` they agree at each step, see `agreed`.
    """
    _wish.say, _wish.alone = say, alone
    try:
        yield
    finally:
        _wish.say = None


def asked() -> int | None:
    """The signal that came."""
    return _wish.number


def check() -> None:
    """Raise Stopped if a signal has come; for a process among several nothing, they stop together."""
    if _wish.number and _wish.say and _wish.alone:
        raise Stopped


def agreed(number: int) -> None:
    """Raise Stopped because one of several processes was asked to; `number` is for those that were not."""
    _wish.number = _wish.number or number
    raise Stopped


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TakesTooLong if what is done here takes longer. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise TakesTooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def passed_on_to(process: subprocess.Popen[bytes]) -> int:
    """The exit code of another process, which gets the signals that come meanwhile; a terminal sends its own to both."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _handle(number: int, frame: Any) -> None:
    if _wish.number:
        if "LOCAL_RANK" in os.environ:
            return  # a launcher passes on what its terminal sends as well: no second wish
        os._exit(128 + number)
    _wish.number = number
    if os.getpid() != _wish.owner:
        return  # a worker that loads data: it ends with its run, or at the second
    if _wish.say is None:
        raise Interrupted("interrupted; nothing was lost by it", number)
    _wish.say()
