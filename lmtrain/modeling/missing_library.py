"""The library that a model or a tokenizer needs and that is not installed."""

import re
from importlib.util import find_spec
from pathlib import Path

NAMED = (
    re.compile(r"pip install (?:-\S+ )*['\"]?([A-Za-z][\w.-]*)"),
    re.compile(r"need to install `?([A-Za-z][\w.-]*)"),
    re.compile(r"requires the ([A-Za-z][\w.-]*) library"),
)
"""How transformers names a library that is missing."""

SENTENCEPIECE = re.compile("sentencepiece|protobuf|tiktoken", re.IGNORECASE)
"""What a message of transformers is about where it cannot read a sentencepiece model: it then takes it for tiktoken's."""


def missing_library(what: str, name: str, error: BaseException) -> str | None:
    """What the `what` (model, tokenizer) in the folder `name` needs, according to the error of loading it.

    None for another fault.
    """
    if what == "tokenizer" and _is_sentencepiece(name) and SENTENCEPIECE.search(str(error)):
        return (
            "its sentencepiece model is read with the library protobuf, which is not installed: pip install protobuf"
        )
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ImportError) and "pip install" not in str(cause):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    named = next((match[1] for pattern in NAMED if (match := pattern.search(str(cause)))), None)
    library = named or (cause.name if isinstance(cause, ImportError) else None)
    if library is None or _is_installed(library.lower().replace("-", "_")):
        reason = " ".join(str(cause).split())[:300]
        return f"the {what} needs a library that is missing or does not fit: {reason}"
    return f"the {what} needs the library {library}, which is not installed: pip install {library}"


def _is_sentencepiece(name: str) -> bool:
    return any(Path(name).glob("*.model")) and not _is_installed("google.protobuf")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
