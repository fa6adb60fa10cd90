"""`lmtrain preview`: the first batches as training would give them to the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.text import Text

from lmtrain.commands.preview import render
from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.errors import visible
from lmtrain.modeling.document_mask import Packing
from lmtrain.modeling.padding_free import text_lengths
from lmtrain.objectives.token_roles import Lines, RowLines, Token, View, fractions
from lmtrain.preprocessing.batch import Batch, Row
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.packing import share_rows
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.stream import Stream
from lmtrain.runtime.console import Console, json_escape, ledger_table, to_json, write_json
from lmtrain.training.data_report import cut_warnings, data_document
from lmtrain.training.datasets import PreparedData
from lmtrain.training.outlined import outline_training


@dataclass(frozen=True)
class Shown:
    """The batches to show, and the summary of the epoch."""

    recipe: Recipe
    view: View
    texts: render.TokenTexts
    batches: list[list[RowLines]]
    """For each row of each batch: the lengths of its texts, and its lines."""
    slots: list[int]
    """Slots for tokens of each batch, padding included."""
    of_epoch: int | None
    """Batches in an epoch; None for a stream."""
    lengths: list[np.ndarray]
    """[rows] tokens of each row of the epoch, of a stream of its first part; one array a column of the view."""
    data: dict[str, Any]
    """As in results.json."""
    notes: list[str]
    warnings: list[str]


def preview(recipe: Recipe, corpus: Corpus, count: int, explain: bool, full: bool, console: Console) -> None:
    """Show the first `count` batches of the first epoch, and a summary of all of them.

    Raises an LmtrainError for whatever the user can put right, as training would.
    """
    shown = look(recipe, corpus, count, console)
    for line in shown.notes:
        console.note(line)
    for line in shown.warnings:
        console.warn(line)
    if not console.main_process:
        return
    if console.as_json:
        write_json(_escape_invisible(to_json(document(shown))))
    else:
        show(shown, explain, full, console)


def look(recipe: Recipe, corpus: Corpus, count: int, console: Console) -> Shown:
    """The first `count` batches, made as training makes them, without weights (outlined.py)."""
    outlined = outline_training(recipe, corpus, 1, console)
    objective, model, packing, width = outlined.objective, outlined.model, outlined.packing, outlined.width
    collator, prepared, batches = outlined.collator, outlined.data, outlined.batches
    is_pairs = model.network.config.is_encoder_decoder
    seen, slots = [], []
    for rows in islice(_rows(batches), count):
        batch = collator(rows)
        shares_rows, size = _layout(batch, width, is_pairs)
        lines = objective.view.lines(rows, batch, model.tokenizer, model.network)
        lines = [_without_padding(line) for line in lines] if shares_rows else lines
        seen.append([(row["lengths"].tolist(), line) for row, line in zip(rows, lines, strict=True)])
        slots.append(size)
    padding, _ = fractions(seen, objective.view, sum(slots))
    examples = _first_part(prepared, packing) if isinstance(batches, Stream) else batches.examples
    data = data_document(recipe, prepared, batches, padding)
    ledgers: dict[str, Any] = {name: data[name] for name in ("train", "eval") if name in data}
    return Shown(
        recipe,
        objective.view,
        render.TokenTexts(model.tokenizer),
        seen,
        slots,
        None if isinstance(batches, Stream) else len(batches),
        examples.lengths_by_column(),
        data,
        [*prepared.notes, *model.notes, _note(prepared.limits, packing, width is not None)],
        [*prepared.warnings, *model.warnings, *cut_warnings(data["kind"], ledgers, prepared.limits)],
    )


def _rows(batches: BatchSampler | Stream) -> Iterator[list[Row]]:
    """The rows of each batch."""
    if isinstance(batches, Stream):
        yield from batches.rows()
    else:
        yield from ([batches.examples[key] for key in keys] for keys in batches)


def _layout(batch: Batch, width: int | None, is_pairs: bool) -> tuple[bool, int]:
    """(whether texts of the batch share rows of `width` tokens; slots for tokens, padding included)."""
    if width:
        shared, slots = share_rows(text_lengths(batch, is_pairs), width)
        return shared is not None, slots
    return False, batch["input_ids"].numel() + (batch["labels"].numel() if is_pairs else 0)


def _without_padding(lines: Lines) -> Lines:
    """The lines of a text that shares a row: the little padding that there is belongs to no text."""
    bare = {name: [token for token in line if token.role != "pad"] for name, line in lines.items()}
    if "decoder_input" in bare:  # behind the last label the decoder would be shown that one
        bare["decoder_input"] = bare["decoder_input"][: len(bare["labels"])]
    return bare


def _first_part(prepared: PreparedData, packing: Packing) -> Examples:
    return prepared.train.packed(prepared.limits["max_length"]) if packing.shares_rows else prepared.train


def _note(limits: Limits, packing: Packing, padding_free: bool) -> str:
    packed = "; packed documents do not attend to each other, if training finds that this model can separate them"
    free = "; training batches are padding-free, if training finds that this model can separate texts"
    return limits.as_flags() + (packed if packing.shares_rows else "") + (free if padding_free else "")


# --- as a document --------------------------------------------------------------------------------------------------
def document(seen: Shown) -> dict[str, Any]:
    """The whole preview, for --json."""
    padding, trained = fractions(seen.batches, seen.view, sum(seen.slots))
    return {
        "objective": seen.recipe.objective,
        "model": seen.recipe.model.name,
        "kind": seen.data["kind"],
        "explanation": seen.view.explanation,
        "batches": [{"rows": [_row(seen, *row) for row in batch]} for batch in seen.batches],
        **({"batches_in_epoch": seen.of_epoch} if seen.of_epoch else {}),
        "padding_fraction": padding,
        "trained_fraction": trained,
        "lengths": {
            name: render.length_bins(column) for name, column in zip(seen.view.measures, seen.lengths, strict=True)
        },
        "data": seen.data,
    }


def _row(seen: Shown, texts: list[int], lines: Lines) -> dict[str, Any]:
    def described(token: Token) -> dict[str, Any]:
        label: dict[str, Any] = {} if token.label is None else {"label": token.label}
        label |= {} if token.name is None else {"label_text": token.name}
        other = {} if token.label in (None, token.id) else {"label_text": render.escape_bytes(seen.texts(token.label))}
        return {
            "id": token.id,
            "text": render.escape_bytes(seen.texts(token.id)),
            "role": token.role,
            **label,
            **other,
        }

    shared = {"texts": texts} if len(texts) > 1 else {}
    return {**{name: [described(token) for token in line] for name, line in lines.items()}, **shared}


def _escape_invisible(text: str) -> str:
    """JSON with invisible characters escaped: equal to a parser, and without control sequences for a terminal."""
    return "".join(c if c.isprintable() else json_escape(c) for c in text)


# --- on a terminal, or in a pipe -------------------------------------------------------------------------------------
def show(seen: Shown, explain: bool, full: bool, console: Console) -> None:
    out, view = console.out, seen.view
    most = None if full or not out.is_terminal else render.LINES
    drawn = [_drawn(seen, batch, out.width, most) for batch in seen.batches]
    roles = {t.role for batch in seen.batches for _, lines in batch for line in lines.values() for t in line}
    whole = "\n".join(line.plain for batch in drawn for line in batch)

    def say(*lines: Text) -> None:
        for line in lines:
            out.print(line, soft_wrap=True)

    if explain:
        out.print(Text(view.explanation + "\n"))
    say(*render.legend(whole, roles, view, out.width))
    for number, (batch, lines) in enumerate(zip(seen.batches, drawn, strict=True), 1):
        out.print(Text("\n" + _heading(seen, number, batch), "bold"))
        say(*lines)
    say(Text())
    ledgers: dict[str, dict[str, Any]] = {name: seen.data[name] for name in ("train", "eval") if name in seen.data}
    out.print(ledger_table(ledgers))
    for source in seen.data.get("train_sources", ()):
        share = f", {source['share']:.1%} of every epoch" if "share" in source else ""
        say(
            Text(f"{visible(source['source'])}: {source['rows_used']:,} rows, {source['tokens_used']:,} tokens{share}")
        )
    for name, column in zip(view.measures, seen.lengths, strict=True):
        say(Text(), *render.histogram(render.length_bins(column), f"Rows by {seen.view.measures[name]}", out.width))
    out.print(Text("\n" + _summary(seen)))


def _drawn(seen: Shown, batch: list[RowLines], width: int, most: int | None) -> list[Text]:
    """The lines of a batch, each row with its number in front."""
    titles = seen.view.titles
    margin = len(str(len(batch))) + 3 + max((len(title) + 2 for title in titles.values()), default=0)
    drawn = []
    for number, (texts, lines) in enumerate(batch, 1):
        for at, (name, line) in enumerate(lines.items()):
            starts = render.text_starts(texts) if len(texts) > 1 else set()
            pieces = render.draw_tokens(line, starts, seen.view, seen.texts)
            filled = render.wrap_row(pieces, render.draw_padding(line, seen.view), max(width - margin, 20), most)
            head = f"{'' if at else number:>{len(str(len(batch))) + 1}}  {titles.get(name, '')}".ljust(margin)
            drawn += [Text.assemble((head if not i else " " * margin, "dim"), text) for i, text in enumerate(filled)]
    return drawn


def _heading(seen: Shown, number: int, batch: list[RowLines]) -> str:
    padding, trained = fractions([batch], seen.view, seen.slots[number - 1])
    sizes = [{len(lines[name]) for _, lines in batch} for name in seen.view.measures]
    size = " + ".join(f"{'up to ' if len(size) > 1 else ''}{max(size):,}" for size in sizes)
    of = f" of {seen.of_epoch:,}" if seen.of_epoch else ""
    rows = f"{len(batch)} row{'s' if batch[1:] else ''}"
    return f"Batch {number}{of}: {rows} of {size} tokens, {padding:.1%} padding, {trained:.1%} trained"


def _summary(seen: Shown) -> str:
    data, tokens = seen.data["train"], sum(int(column.sum()) for column in seen.lengths)
    if seen.of_epoch is None:
        return "Streaming: the ledger and the lengths cover only the rows that were read for these batches."
    return (
        f"Whole epoch: {data['padding_fraction']:.1%} padding; {data['tokens_trained'] / tokens:.1%} of the other tokens "
        "are trained."
    )
