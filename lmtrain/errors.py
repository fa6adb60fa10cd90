"""Everything that can go wrong for a reason that is not a fault of ours, and the exit code of each."""

from collections.abc import Iterable


class LmtrainError(Exception):
    """One clear sentence for the person who can put it right: where, what, remedy."""

    exit_code = 1


class UsageError(LmtrainError):
    """An unknown or impossible flag, recipe key or value."""

    exit_code = 2


class InputError(LmtrainError):
    """Data, a model, a tokenizer or a recipe file that cannot be used as it is."""

    exit_code = 3


class TakesTooLong(LmtrainError):
    """A program that came with the input, such as a chat template, comes to no end."""

    exit_code = 3


class GateFailed(LmtrainError):
    """Trained or evaluated, but a figure is not what it has to be."""

    exit_code = 4


class OutOfMemory(LmtrainError):
    """The device has not enough memory for one micro-batch."""

    exit_code = 5


class BrokenDown(LmtrainError):
    """The loss is no longer a finite number."""

    exit_code = 6


class StorageError(LmtrainError):
    """The disk is full, or a folder cannot be written."""

    exit_code = 7


class Interrupted(LmtrainError):
    """Stopped by a signal, after a checkpoint was saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def suggestion(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` where `known` holds something close to `word`, else the empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def visible(text: str, limit: int = 60) -> str:
    """`text` from somebody's data, shortened and with control characters escaped: safe to print on a terminal."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
