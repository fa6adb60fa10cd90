"""TODO."""

from typing import Any

from lmtrain.runs.file_names import RECIPE
from lmtrain.runtime.console import figure


def card(results: dict[str, Any], command: str) -> str:
    """The model card (README.md of the run folder)."""
    figures = "\n".join(f"| {name} | {figure(value)} |" for name, value in results["metrics"].items())
    ledger = results["data"]["train"]
    settings = "\n".join(f"| {name} | {value} |" for name, value in results["environment"].items())
    return f"""# {results["model"]}, trained with lmtrain {results["objective"]}

| figure | on held-out data |
|---|---|
{figures or "| – | nothing was held out |"}

Trained for {results["train"]["steps"]:,} steps on {ledger["rows_used"]:,} rows and {ledger["tokens_used"]:,} tokens
(data fingerprint `{ledger["fingerprint"][:16]}`).

Once more, from this folder's `{RECIPE}`:

```
{command}
```

| environment | |
|---|---|
{settings}
"""
