"""Errors that the user can fix, and their exit codes."""

from collections.abc import Iterable


class LmtrainError(Exception):
    """Base class; the message says where, what and how to fix it."""

    exit_code = 1


class UsageError(LmtrainError):
    """An unknown or impossible flag, recipe key or value."""

    exit_code = 2


class InputError(LmtrainError):
    """Data, a model, a tokenizer or a recipe file that cannot be used."""

    exit_code = 3


class TakesTooLong(LmtrainError):
    """Code from the input, such as a chat template, does not finish."""

    exit_code = 3


class GateFailed(LmtrainError):
    """Training or evaluation succeeded, but a gate failed."""

    exit_code = 4


class OutOfMemory(LmtrainError):
    """One micro-batch does not fit in the device's memory."""

    exit_code = 5


class BrokenDown(LmtrainError):
    """The loss is not finite any more."""

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
    """`"; did you mean 'x'?"` if a `known` word is similar to `word`, otherwise the empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def visible(text: str, limit: int = 60) -> str:
    """Text from data, shortened and with control characters escaped, so that it is safe to print on a terminal."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
