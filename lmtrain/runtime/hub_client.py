"""Bounded retries for the client of the Hugging Face Hub.

By default it obeys any Retry-After header, and retries for more than a minute when the Hub is down.
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
"""Seconds without a successful response after which requests fail."""
TRIES = 6
"""Maximum number of requests for the same file, or for the same range of it."""
BUSY = (408, 425, 429)
"""Status codes that ask the client to try again later."""


class HubFault(OSError):
    """The Hub does not work; the message says why."""


class _State:
    """What is known about the Hub. There is one client for the process, so there is one instance."""

    down_since: float | None = None
    fault = ""
    """The last fault, empty if there was none."""
    requested: ClassVar[Counter[tuple[str, str]]] = Counter()


def last_fault() -> str:
    """The last fault of the Hub, empty if there was none."""
    return _State.fault


def limit_retries() -> None:
    """Make the Hub's client fail after `PATIENCE` seconds of faults."""
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
            _note(f"the hub answers {response.status_code}", began, _retry_after(response.headers))
        else:
            _State.down_since = None
        return response

    client.send = bounded  # type: ignore[method-assign]
    return client


def _count(request: Any) -> None:
    """Count a download. Raises HubFault if the same one was requested too often."""
    key = str(request.url), request.headers.get("Range", "")
    _State.requested[key] += 1
    if _State.requested[key] > TRIES:
        _State.fault = f"the hub sends {Path(request.url.path).name} only in part"
        raise HubFault(_State.fault)


def _note(fault: str, began: float, wait: float) -> None:
    """Record a fault. Raises HubFault if requests have failed for `PATIENCE` seconds, or will have after the wait."""
    _State.fault = fault + (f" and asks to wait {wait:.0f} s" if wait > PATIENCE else "")
    _State.down_since = _State.down_since or began
    if time.monotonic() - _State.down_since + wait > PATIENCE:
        raise HubFault(_State.fault)


def _retry_after(headers: Any) -> float:
    """Seconds to wait before the next request, from the response's headers."""
    after = headers.get("Retry-After", "").strip()
    reset = re.search(r"\bt\s*=\s*(\d{1,9})", headers.get("RateLimit", ""))
    return float(after[:9]) if after.isdecimal() else float(reset[1]) if reset else 0.0
