"""TODO."""

from typing import Any

from lmtrain.config.architectures import ADAPTER
from lmtrain.runs.file_names import RECIPE
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.console import figure


def summary(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table that ends a run: figures with their 95 % intervals, gates, what the run took."""
    intervals = results.get("intervals", {})
    rows = [
        (name, figure(value) + (" [{}, {}]".format(*map(figure, intervals[name])) if name in intervals else ""))
        for name, value in results["metrics"].items()
    ]
    for name, comparison in results.get("against", {}).items():
        rows.append((f"{name} against", f"{comparison['difference']:+.4g} [{comparison['interval'][0]:+.4g}, "
                                        f"{comparison['interval'][1]:+.4g}], p = {comparison['p_value']:.3g}"))  # fmt: skip
    rows += [(gate["expression"], "holds" if gate["holds"] else "does not hold") for gate in results["gates"]]
    train = results.get("train") or results["eval"]
    for name in ("steps", "first_loss", "last_loss", "tokens_trained", "tokens_per_second", "seconds"):
        if name in train:
            rows.append((name.replace("_", " "), figure(train[name])))
    return rows


def signatures(results: dict[str, Any]) -> list[str]:
    """How the figures were made, one line for all that were made alike."""
    alike: dict[str, list[str]] = {}
    for name, signature in results.get("signatures", {}).items():
        alike.setdefault(signature, []).append(name)
    return [f"{' '.join(names)}: {signature}" for signature, names in alike.items()]


def next_steps(objective: str, folder: RunFolder, hint: str = "") -> str:
    """Where the model is, and what to type next; `hint` follows the suggestion to try `generate`."""
    adapter = (folder.path / ADAPTER).is_file()
    merge = f"\n  lmtrain merge {folder.path} -o …     make one model of adapter and base" if adapter else ""
    what = "adapter is in {}; peft loads it" if adapter else "model is in {}; AutoModel classes load it"
    return f"""
The {what.format(folder.path)} from there. Next:
  lmtrain generate --model {folder.path} --prompt …     see what it writes{hint}
  lmtrain eval --model {folder.path} --data …     score it on other data
  lmtrain {objective} --model {folder.path} --data …     train on, with other data
  lmtrain run {folder.path / RECIPE} --seed 1     the same once more, with something changed{merge}"""
