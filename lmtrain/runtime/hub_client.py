"""The hub's client, held to an end: it gives up on a hub that is down.

By itself it waits as long as an answer tells it to (Retry-After), and tries again for more than a minute.
"""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from lmtrain.errors import visible

PATIENCE = 20.0
"""Seconds of nothing but faults after which the hub is given up."""
TRIES = 6
"""Times that one file, or one part of it, is asked for."""
BUSY = (408, 425, 429)


class HubFault(OSError):
    """The hub is given up; the message says why."""


class _Line:
    """What is known of the way to the hub: there is one client, and one hub."""

    down_since: float | None = None
    fault = ""
    """The last fault that there was."""
    asked: ClassVar[Counter[tuple[str, str]]] = Counter()


def last_fault() -> str:
    """What the hub did last that it should not, empty where it did nothing."""
    return _Line.fault


def limit_retries() -> None:
    """Have the hub's client give up in time."""
    set_client_factory(_client)


def _client() -> Any:
    client = default_client_factory()
    send = client.send
    longest = max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)

    def bounded(request: Any, *arguments: Any, **options: Any) -> Any:
        timeouts = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {name: min(value or longest, longest) for name, value in timeouts.items()}
        if options.get("stream"):
            _count(request)
        began = time.monotonic()
        try:
            response = send(request, *arguments, **options)
        except OSError:
            raise
        except Exception as error:
            kind = type(error).__name__
            what = (
                "does not answer" if "Timeout" in kind else f"cannot be reached ({visible(str(error), 100) or kind})"
            )
            _note(f"the hub {what}", began, 0)
            raise
        if response.status_code in BUSY or response.status_code >= 500:
            _note(f"the hub answers {response.status_code}", began, _asked_to_wait(response.headers))
        else:
            _Line.down_since = None
        return response

    client.send = bounded
    return client


def _count(request: Any) -> None:
    asked = str(request.url), request.headers.get("Range", "")
    _Line.asked[asked] += 1
    if _Line.asked[asked] > TRIES:
        _Line.fault = f"the hub sends {Path(request.url.path).name} only in part"
        raise HubFault(_Line.fault)


def _note(fault: str, began: float, wait: float) -> None:
    """Remember a fault of the hub. Raises HubFault once there has been nothing else for too long, or would be."""
    _Line.fault = fault + (f" and wants {wait:.0f} s of waiting" if wait > PATIENCE else "")
    _Line.down_since = _Line.down_since or began
    if time.monotonic() - _Line.down_since + wait > PATIENCE:
        raise HubFault(_Line.fault)


def _asked_to_wait(headers: Any) -> float:
    """Seconds that an answer wants the next request to be put off."""
    after = headers.get("Retry-After", "").strip()
    reset = re.search(r"\bt\s*=\s*(\d{1,9})", headers.get("RateLimit", ""))
    return float(after[:9]) if after.isdecimal() else float(reset[1]) if reset else 0.0
