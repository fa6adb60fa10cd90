"""The `data` section of results.json: counts of rows and tokens, shown before training starts."""

from collections.abc import Mapping
from typing import Any

from lmtrain.config.recipe import Recipe
from lmtrain.data.ledger import COUNTS, Ledger, total
from lmtrain.metrics import base_name
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.sampler import BatchSampler, longest_first, padding_fraction
from lmtrain.preprocessing.stream import Stream
from lmtrain.runtime.console import Console
from lmtrain.training.datasets import PreparedData


def show_ledgers(recipe: Recipe, prepared: PreparedData, batches: BatchSampler | Stream, console: Console) -> None:
    """Show the ledgers before training; that of a stream is complete only afterwards."""
    data = data_document(recipe, prepared, batches, 0.0)
    if isinstance(batches, Stream):
        _show(recipe, prepared, data, ("eval",), console)
        console.note("streaming: the counts of rows and tokens follow at the end")
    else:
        _show(recipe, prepared, data, ("train", "eval"), console)


def show_stream_ledger(recipe: Recipe, prepared: PreparedData, data: dict[str, Any], console: Console) -> None:
    """Show the training ledger of a stream after training; `data` is the `data` section of results.json."""
    _show(recipe, prepared, data, ("train",), console)


def _show(
    recipe: Recipe, prepared: PreparedData, data: dict[str, Any], splits: tuple[str, ...], console: Console
) -> None:
    shown = {name: data[name] for name in splits if name in data}
    console.ledger(shown)
    for source in data.get("train_sources", ()) if "train" in shown else ():
        console.note(
            f"{source['source']}: {source['rows_used']:,} rows, {source['tokens_used']:,} tokens"
            + (f", {source['share']:.1%} of every epoch" if recipe.data.weights else "")
        )
    for name, counts in data.get("evaluation_sets", {}).items() if "eval" in shown else ():
        chosen_by = name == (recipe.eval.best_metric.rpartition(".")[0] or recipe.data.eval_sets[0])
        note = f"; its {base_name(recipe.eval.best_metric)} selects the best model" if chosen_by else ""
        console.note(f"evaluation set {name}: {counts['rows_used']:,} rows, {counts['tokens_used']:,} tokens{note}")
    for line in cut_warnings(data["kind"], shown, prepared.limits):
        console.warn(line)


def set_counts(examples: Examples) -> dict[str, dict[str, int]]:
    """Evaluation set -> its counts of rows and tokens; empty where the sets have no names."""
    names = examples.evaluation_sets
    ledgers = {
        name: [ledger for ledger, of in zip(examples.ledgers, names, strict=True) if of == name] for name in names
    }
    return {name: _counts(total(own)) for name, own in ledgers.items()}


def cut_warnings(kind: str, ledgers: Mapping[str, Mapping[str, Any]], limits: Limits) -> list[str]:
    """Warnings about rows that are cut, and prompts that leave no room for an answer, by split."""
    names, flags = {"train": "training", "eval": "evaluation"}, limits.as_flags(" and ")
    warnings = []
    for split, ledger in ledgers.items():
        cut, used, read = (ledger[f"rows_{fate}"] for fate in ("truncated", "used", "read"))
        if cut:
            warnings.append(
                f"{cut:,} of {used:,} {names[split]} rows are cut at {flags} ({cut / used:.1%}); a larger limit keeps more of "
                "them, if the model has the positions, and --on-long drop leaves them out"
            )
        if kind == "prompt" and (dropped := ledger["rows_dropped"]):
            warnings.append(
                f"{dropped:,} of {read:,} {names[split]} rows are left out: too long, or a prompt that leaves no room "
                f"for its completion within {flags}"
            )
    return warnings


def data_document(
    recipe: Recipe, prepared: PreparedData, batches: BatchSampler | Stream, padding: float
) -> dict[str, Any]:
    """The `data` section of results.json; `padding` is the padding fraction of a stream, known only afterwards."""
    if isinstance(batches, Stream):
        ledgers, fingerprint = batches.ledgers()
    else:
        ledgers, fingerprint = batches.examples.ledgers, batches.examples.fingerprint
        padding = batches.padding_fraction()
    data: dict[str, Any] = {"kind": prepared.train.kind}
    data["train"] = {**total(ledgers, fingerprint).document(), "padding_fraction": padding}
    if len(ledgers) > 1:
        shares = _shares(recipe, batches)
        data["train_sources"] = [
            {"source": name, **({} if share is None else {"share": share}), **_counts(ledger)}
            for name, share, ledger in zip(recipe.data.train, shares, ledgers, strict=True)
        ]
    if held_out := prepared.held_out:
        rows = longest_first(held_out.lengths, recipe.eval.batch_size)
        padding = padding_fraction(held_out.lengths_by_column(), rows)
        data["eval"] = {**held_out.ledger.document(), "padding_fraction": padding}
        data |= {"evaluation_sets": sets} if (sets := set_counts(held_out)) else {}
    if not isinstance(batches, Stream):  # the rows of a stream are never compared
        data |= {"shared_rows": prepared.shared_rows} if held_out else {}
        data["duplicate_rows"] = prepared.duplicate_rows
    return data


def _shares(recipe: Recipe, batches: BatchSampler | Stream) -> list[float | None]:
    """Share of each source in the rows of an epoch; None without --weights."""
    if isinstance(batches, Stream) or not recipe.data.weights:
        return [None] * len(recipe.data.train)
    rows = batches.order.shares()
    return [rows.get(source, 0) / len(batches.order) for source in range(len(recipe.data.train))]


def _counts(ledger: Ledger) -> dict[str, int]:
    return {name: vars(ledger)[name] for name in COUNTS}
