"""The model card: README.md of a run folder."""

from collections.abc import Mapping
from typing import Any

from lmtrain.runs.file_names import RECIPE
from lmtrain.runtime.console import format_number


def card(results: Mapping[str, Any], command: str) -> str:
    """The text of the model card; `command` repeats the run."""
    metrics = "\n".join(f"| {name} | {format_number(value)} |" for name, value in results["metrics"].items())
    ledger = results["data"]["train"]
    settings = "\n".join(f"| {name} | {value} |" for name, value in results["environment"].items())
    return f"""# {results["model"]}, trained with lmtrain {results["objective"]}

| metric | on evaluation data |
|---|---|
{metrics or "| – | no evaluation data |"}

Trained for {results["train"]["steps"]:,} steps on {ledger["rows_used"]:,} rows and {ledger["tokens_used"]:,} tokens
(data fingerprint `{ledger["fingerprint"][:16]}`).

To repeat the run from this folder's `{RECIPE}`:

```
{command}
```

| environment | |
|---|---|
{settings}
"""
