"""Secrets out of all that is printed or written: by their shape, by the environment's word, by the name beside them.

What people write in data and models is not touched but for what has the shape of a key, or is one of this machine's.
"""

import os
import re
from collections.abc import Callable
from functools import cache, lru_cache
from json import dumps
from pathlib import Path
from typing import Any
from urllib.parse import quote

HIDDEN = "***"

SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"
    r"|sk-(?:[a-z]{2,10}\d{0,2}-)[\w-]{16,}(?<=[\w-]{20})|sk-[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|xox[a-z]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"
    r")"
)
IN_ADDRESS = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
"""user:password@"""
IN_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|passw|pwd|credential|signature|\bsig\b|access|auth)[\w.-]*=)[^&\s#\"'<>]+",
    re.IGNORECASE,
)
BESIDE = re.compile(r"([\w.-]+)([\"']?\s*(?:=|:)\s*[\"']?)([^\s\"',;{}()\[\]]+)")
"""name=value, name: value, "name": "value" """

WORD = r"(?:token|secret|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|key[_-]?id)"
ROLES = (
    "pad|eos|bos|cls|sep|mask|unk|end|begin|start|stop|new|last|first|next|per|image|audio|video|special|extra|prompt|"
    "decoder_start|use_cls|boi|eoi|mem|memory|num|max|min|by|each|additional|language|lang|class|separator|padding"
)
SECRET_NAME = re.compile(rf"(?:^|[._-]){WORD}$", re.IGNORECASE)
A_TOKEN_OF_TEXT = re.compile(rf"(?:^|[._-])(?:{ROLES})_?token$", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"(?:TOKEN|KEY|KEY_?ID|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)
LEAST = 8
"""Characters of a value of the environment that is hidden wherever it stands: a shorter one might be any word."""

Redact = Callable[[str], str]


def is_secret_name(name: str) -> bool:
    """Whether what bears this name is a secret: api_key and hub_token are, pad_token and num_memory_tokens are not."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(SECRET_NAME.search(snake)) and not A_TOKEN_OF_TEXT.search(snake)


def secret_key(document: Any, path: str = "") -> str | None:
    """The path of a key in a nested document that names a secret, None where there is none."""
    if not isinstance(document, dict):
        return None
    for key, value in document.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, str | bytes) and value and is_secret_name(str(key)):
            return here
        if found := secret_key(value, here):
            return found
    return None


def redacted(text: str) -> str:
    """A message, a traceback or a log line without secrets, also without those that only their name gives away."""
    return BESIDE.sub(_beside, by_value()(text))


def _beside(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    telling = "=" in between or any(c.isdigit() for c in value) or len(value) >= 2 * LEAST
    bare = name.rpartition(".")[2].lower() == "token"
    long_enough = len(value) >= (2 * LEAST if bare else LEAST if not telling else 4)
    if value == HIDDEN or not long_enough or not is_secret_name(name):
        return match[0]
    return f"{name}{between}{HIDDEN}" if telling else match[0]


def by_value() -> Redact:
    """What hides the secrets in a text, be it data, by their values alone."""
    return _hiding(_from_environment() + _from_files(os.environ.get("NETRC"), os.environ.get("HF_HOME"), _home()))


def in_document(value: Any, hide: Redact | None = None) -> Any:
    """The same in every text of a nested document."""
    hide = hide or by_value()
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(key) if isinstance(key, str) else key: in_document(inner, hide) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [in_document(inner, hide) for inner in value]
    return value


@lru_cache(maxsize=8)
def _hiding(values: tuple[str, ...]) -> Redact:
    # As they stand in JSON, in Python's repr and in an address, too.
    forms = {
        form for value in values for form in (value, dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""))
    }
    known = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def hide(text: str) -> str:
        text = known.sub(HIDDEN, text) if known else text
        text = SHAPES.sub(HIDDEN, text)
        if "://" in text:
            text = IN_ADDRESS.sub(f"{HIDDEN}@", text)
        return IN_QUERY.sub(rf"\1{HIDDEN}", text) if "=" in text else text

    return hide


def _from_environment() -> tuple[str, ...]:
    return tuple(
        value
        for name, value in os.environ.items()
        if len(value) >= LEAST and SECRET_VARIABLE.search(name) and not value.startswith(("/", "~", "./"))
    )


def _home() -> str:
    return os.environ.get("HOME", "")


@cache
def _from_files(netrc: str | None, hub: str | None, home: str) -> tuple[str, ...]:
    """The passwords of ~/.netrc and the hub's token."""
    passwords = re.findall(r"\bpassword\s+(\S+)", _content(Path(netrc or f"{home}/.netrc")))
    token = _content(Path(hub or f"{home}/.cache/huggingface", "token")).strip()
    return tuple(value for value in (*passwords, token) if len(value) >= LEAST)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < 1 << 20 else ""
    except (OSError, ValueError):
        return ""
