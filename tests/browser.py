"""A headless Chromium, spoken to through its pipe: looks at a page as a person would."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--remote-debugging-pipe"]  # fmt: skip


class Browser:
    """One page in a browser; `requests` and `complaints` are what the page asked for and what the console says."""

    def __enter__(self) -> Self:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()

        def place() -> None:
            saved = os.dup(in_read), os.dup(out_write)
            os.dup2(saved[0], 3), os.dup2(saved[1], 4)

        assert CHROMIUM
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            preexec_fn=place,
            pass_fds=(3, 4, in_read, out_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(in_read), os.close(out_write)
        self.write, self.read = in_write, os.fdopen(out_read, "rb", buffering=0)
        self.number, self.rest, self.session = 0, b"", None
        self.last: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write), self.read.close()
        self.profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        own = {"sessionId": self.session} if self.session else {}
        os.write(
            self.write, json.dumps({"id": self.number, "method": method, "params": parameters, **own}).encode() + b"\0"
        )
        while (message := self._next()).get("id") != self.number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            got = self.read.read(1 << 16)
            assert got, "the browser has ended"
            self.rest += got
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"), message.get("params"):
            case "Network.requestWillBeSent", {"request": {"url": url}}:
                self.requests.append(url)
            case "Log.entryAdded", {"entry": {"text": text}}:
                self.complaints.append(text)
            case (("Runtime.consoleAPICalled" | "Runtime.exceptionThrown"), details):
                self.complaints.append(str(details))
        self.last = message.get("method")

    def open(self, path: Path, width: int, height: int = 1200, scripts: bool = True) -> None:
        """Load a file at a width, in CSS pixels, and wait for it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.last = None
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.last != "Page.loadEventFired":
            self._note(self._next())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])


def colours(png: bytes) -> int:
    """The number of different bytes in the rows of a PNG: 2 or so for an empty page, many for one with text."""
    at, data = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return len(set(zlib.decompress(data)))
