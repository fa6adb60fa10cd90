"""The examples of docs/python.md run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.mark.slow
def test_examples_run_in_order():
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) > 5
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        # The blank lines make a traceback name the line of the page.
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
