"""Terminal output: messages and progress on stderr, results on stdout."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from lmtrain.errors import visible
from lmtrain.runtime.redaction import redact, redact_document
from lmtrain.runtime.streams import is_utf8

SECONDS_BETWEEN_LINES = 10.0

Step = TypeVar("Step")


def to_json(document: object, indent: int | None = None) -> str:
    """Standard JSON: NaN and infinities become null."""
    return json.dumps(_without_nan(document), ensure_ascii=False, indent=indent, allow_nan=False)


def write_json(text: str) -> None:
    """Write a JSON text to standard output; in ASCII, which is the same document, where the encoding is not UTF-8."""
    if not is_utf8():
        text = "".join(c if c.isascii() else json_escape(c) for c in text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def json_escape(character: str) -> str:
    """A character of a JSON string as one or two escapes."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _safe(text: str) -> str:
    """The text without secrets, and with control characters and Rich markup escaped."""
    text = redact(text)
    return escape("".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text))


class Console:
    """Prints messages to stderr unless `quiet`, and results to stdout: as a table, or as JSON with `as_json`."""

    def __init__(self, quiet: bool = False, as_json: bool = False, main_process: bool = True) -> None:
        self.quiet, self.as_json, self.main_process = quiet, as_json, main_process
        # Lines in a log file are not wrapped at 80 columns.
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        # With NO_COLOR alone, Rich still writes bold and dim.
        self.out = RichConsole(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")

    @property
    def live(self) -> bool:
        """Whether to show spinners and bars that are redrawn in place."""
        return self.err.is_terminal and not self.quiet and self.main_process

    @property
    def reader_left(self) -> bool:
        """Whether nobody reads the results any more, because a pipe was closed."""
        return bool(getattr(sys.stdout, "reader_left", False))

    def working(self, on: str) -> AbstractContextManager[object]:
        """Show a spinner while the block runs, on a terminal only."""
        return self.err.status(f"{on} …") if self.live else nullcontext()

    def track(self, steps: Sequence[Step], what: str) -> Iterator[Step]:
        """Iterate over `steps` with a progress bar; outside a terminal, with a line every ten seconds."""
        if self.quiet or not self.main_process:
            yield from steps
            return
        if self.live:
            from rich.progress import track  # slow to import

            yield from track(steps, what, console=self.err, transient=True)
            return
        printed = time.monotonic()
        for number, step in enumerate(steps):
            if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                self.note(f"{what}: {number:,} of {len(steps):,}")
            yield step

    def note(self, text: str) -> None:
        if self.main_process and not self.quiet:
            self.err.print(_safe(text))

    def warn(self, text: str) -> None:
        """Print a warning, even with --quiet."""
        if self.main_process:
            self.err.print(f"[yellow]warning:[/] {_safe(text)}")

    def error(self, text: str) -> None:
        if self.main_process:
            for line in text.split("\n"):
                self.err.print(f"[bold red]lmtrain:[/] {_safe(line)}")

    def answer(self, answer: dict[str, Any], streamed: bool) -> None:
        """Print the answer to one prompt, as a JSON line or as text; text that was `streamed` is not printed again.

        Several outputs are printed with their scores, a single one as nothing but its text.
        """
        if self.as_json:
            write_json(to_json(redact_document(answer)))
        elif len(answer.get("outputs", ())) > 1:
            for output in answer["outputs"]:
                score = f"{output['score']:8.4f}  " if "score" in output else ""
                self.out.print(score + _safe(output["text"]), soft_wrap=True)
        elif not streamed:
            self.out.print(_safe(answer["output"]), soft_wrap=True)
        for mask in answer.get("masks", ()) if not self.as_json else ():
            self.out.print(
                "  " + "  ".join(f"{_safe(t['token'])} {t['probability']:.1%}" for t in mask), soft_wrap=True
            )

    def result(
        self,
        document: dict[str, Any] | list[dict[str, Any]],
        rows: Sequence[Sequence[str]],
        title: str,
        below: Sequence[str] = (),
        header: Sequence[str] = (),
    ) -> None:
        """Print the result: `document` with --json, otherwise a table of `rows` with the lines `below` it."""
        if not self.main_process:
            return
        if self.as_json:
            write_json(to_json(redact_document(document), indent=2))
            return
        table = Table(title=_safe(title), show_header=bool(header), title_justify="left")
        for number in range(max((len(row) for row in rows), default=len(header))):
            table.add_column(_safe(header[number]) if header else "", overflow="fold")
        for row in rows:
            table.add_row(*map(_safe, row))
        self.out.print(table)
        for line in below:
            self.out.print(f"[dim]{escape(line)}[/]", soft_wrap=True)

    def ledger(self, ledgers: dict[str, dict[str, Any]]) -> None:
        """Print the ledgers of the splits side by side, without counts that are zero in all of them."""
        if self.quiet or not self.main_process or not ledgers:
            return
        self.err.print(ledger_table(ledgers))

    def samples(self, samples: list[dict[str, str]]) -> None:
        for sample in samples:
            self.note(
                "\n".join(f"  {name:>9}: {visible(text, 200) or '(nothing)'}" for name, text in sample.items()) + "\n"
            )


class Silent(Console):
    """Prints nothing, for runs whose results are used by other code."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        pass

    def answer(self, *_: Any, **__: Any) -> None:
        pass

    def result(self, *_: Any, **__: Any) -> None:
        pass


def ledger_table(ledgers: dict[str, dict[str, Any]]) -> Table:
    title = "Rows and tokens used, truncated and dropped"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    for name in ledgers:
        table.add_column(name, justify="right")
    for count in next(iter(ledgers.values())):
        values = [ledger[count] for ledger in ledgers.values()]
        if count != "fingerprint" and any(values):
            shown = [f"{v:,}" if isinstance(v, int) else f"{v:.1%}" for v in values]
            table.add_row(count.replace("_", " "), *shown)
    return table


def format_number(value: object) -> str:
    """A number with four significant digits, or in full if it is an integer."""
    if isinstance(value, float):
        return f"{value:,.4f}" if 0.001 <= abs(value) < 1000 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
