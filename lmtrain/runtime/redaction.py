"""Removes secrets from everything that is printed or written.

A secret is recognized by its shape (`hf_…`), by its value (a token in the environment, ~/.netrc or the hub's cache), or, in
messages, by the name beside it (`api_key=…`). Text from data and models is searched by shape and value only.
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
URL_USER = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
"""user:password@"""
URL_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|passw|pwd|credential|signature|\bsig\b|access|auth)[\w.-]*=)[^&\s#\"'<>]+",
    re.IGNORECASE,
)
NAMED_VALUE = re.compile(r"([\w.-]+)([\"']?\s*(?:=|:)\s*[\"']?)([^\s\"',;{}()\[\]]+)")
"""name=value, name: value, "name": "value" """

WORD = r"(?:token|secret|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|key[_-]?id)"
TOKEN_ROLES = (
    "pad|eos|bos|cls|sep|mask|unk|end|begin|start|stop|new|last|first|next|per|image|audio|video|special|extra|prompt|"
    "decoder_start|use_cls|boi|eoi|mem|memory|num|max|min|by|each|additional|language|lang|class|separator|padding"
)
SECRET_NAME = re.compile(rf"(?:^|[._-]){WORD}$", re.IGNORECASE)
TEXT_TOKEN_NAME = re.compile(rf"(?:^|[._-])(?:{TOKEN_ROLES})_?token$", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"(?:TOKEN|KEY|KEY_?ID|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)
MIN_LENGTH = 8
"""Minimum length of an environment value to hide everywhere; a shorter one may be an ordinary word."""

Redactor = Callable[[str], str]


def is_secret_name(name: str) -> bool:
    """Whether this is the name of a secret: api_key and hub_token are, pad_token and num_memory_tokens are not."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(SECRET_NAME.search(snake)) and not TEXT_TOKEN_NAME.search(snake)


def redact(text: str) -> str:
    """A message, traceback or log line without secrets, including those recognized only by the name beside them."""
    return NAMED_VALUE.sub(_hide_if_secret, value_redactor()(text))


def _hide_if_secret(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    looks_secret = "=" in between or any(c.isdigit() for c in value) or len(value) >= 2 * MIN_LENGTH
    # "token: x" is common in prose about text, so a bare "token" needs a long value.
    minimum = 2 * MIN_LENGTH if name.rpartition(".")[2].lower() == "token" else 4
    if value == HIDDEN or not looks_secret or len(value) < minimum or not is_secret_name(name):
        return match[0]
    return f"{name}{between}{HIDDEN}"


def value_redactor() -> Redactor:
    """A function that hides secrets by shape and value, safe for text from data."""
    return _redactor(_from_environment() + _from_files(os.environ.get("NETRC"), os.environ.get("HF_HOME"), _home()))


def redact_document(value: Any, hide: Redactor | None = None) -> Any:
    """Apply `value_redactor` to every string of a nested document, including keys."""
    hide = hide or value_redactor()
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {
            hide(key) if isinstance(key, str) else key: redact_document(inner, hide) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_document(inner, hide) for inner in value]
    return value


@lru_cache(maxsize=8)
def _redactor(values: tuple[str, ...]) -> Redactor:
    # Values also appear escaped: in JSON, in Python's repr and in URLs.
    forms = {
        form for value in values for form in (value, dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""))
    }
    known = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def hide(text: str) -> str:
        text = known.sub(HIDDEN, text) if known else text
        text = SHAPES.sub(HIDDEN, text)
        if "://" in text:
            text = URL_USER.sub(f"{HIDDEN}@", text)
        return URL_QUERY.sub(rf"\1{HIDDEN}", text) if "=" in text else text

    return hide


def _from_environment() -> tuple[str, ...]:
    return tuple(
        value
        for name, value in os.environ.items()
        if len(value) >= MIN_LENGTH and SECRET_VARIABLE.search(name) and not value.startswith(("/", "~", "./"))
    )


def _home() -> str:
    return os.environ.get("HOME", "")


@cache
def _from_files(netrc: str | None, hub: str | None, home: str) -> tuple[str, ...]:
    """The passwords of ~/.netrc and the hub's token."""
    passwords = re.findall(r"\bpassword\s+(\S+)", _content(Path(netrc or f"{home}/.netrc")))
    token = _content(Path(hub or f"{home}/.cache/huggingface", "token")).strip()
    return tuple(value for value in (*passwords, token) if len(value) >= MIN_LENGTH)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < 1 << 20 else ""
    except (OSError, ValueError):
        return ""
