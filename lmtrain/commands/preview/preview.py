"""What a model will see: the first batches of a training that does not take place."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from rich.text import Text

from lmtrain.commands.preview import render
from lmtrain.data.corpus import Corpus
from lmtrain.errors import InputError, visible
from lmtrain.modeling import padding_free
from lmtrain.modeling.configuration import LOADING, load_config, sized_config
from lmtrain.modeling.document_mask import DocumentMask, Packing
from lmtrain.modeling.network import check_vocabulary, positions
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.objectives.token_roles import Lines, Seen, Token, View, fractions
from lmtrain.preprocessing.batch import Batch, Collator, Row
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.packing import share_rows
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.stream import Stream
from lmtrain.runtime.console import Console, ledger_table, to_json
from lmtrain.training.data_report import data_document
from lmtrain.training.datasets import PreparedData, learn_tokenizer, prepare, training_batches


@dataclass(frozen=True)
class Opened:
    """A collator that hands the rows on together with the batch that it makes of them."""

    collate: Collator

    def __call__(self, rows: list[Row]) -> tuple[list[Row], Batch]:
        return rows, self.collate(rows)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        return self.collate.scored(row)


@dataclass(frozen=True)
class Shown:
    """What there is to look at."""

    recipe: Any
    view: View
    texts: render.Texts
    batches: list[list[Seen]]
    """Of each row of each batch the lengths of the texts in it, and its lines."""
    places: list[int]
    """Of each batch, for tokens, padding included."""
    of_epoch: int | None
    """Batches in an epoch; None for a stream."""
    lengths: list[np.ndarray]
    """[rows] tokens of each row of the epoch, of a stream of its first part; one array a column of the view."""
    data: dict[str, Any]
    """As in results.json."""
    notes: list[str]
    warnings: list[str]


def preview(recipe: Any, corpus: Corpus, count: int, explain: bool, full: bool, console: Console) -> None:
    """Show the first `count` batches of the first epoch, and what is to be said of all of them.

    Raises an LmtrainError for whatever the user can put right, as training would.
    """
    seen = look(recipe, corpus, count, console)
    for line in seen.notes:
        console.note(line)
    for line in seen.warnings:
        console.warn(line)
    if not console.main_process:
        return
    if console.as_json:
        sys.stdout.write(_harmless(to_json(document(seen))) + "\n")
    else:
        show(seen, explain, full, console)


def look(recipe: Any, corpus: Corpus, count: int, console: Console) -> Shown:
    """The first `count` batches, made as training makes them.

    Only what training asks the weights is answered without them: that texts which share a row can be kept apart is taken
    for granted, also that the rows of a batch can be laid end to end, and that no model reads padding (ProphetNet does: it
    is trained on rows of full length).
    """
    config = load_config(recipe.model, recipe.objective)
    objective = OBJECTIVES[recipe.objective]
    with console.working("loading the tokenizer"):
        tokenizer, told = load_tokenizer(
            recipe.model, corpus.kind, lambda name: learn_tokenizer(name, corpus, objective.frame_for(recipe.data))
        )
    collate = Opened(objective.collate(tokenizer, recipe.data, recipe.train.seed))
    network = outline(recipe.model, config, tokenizer, objective.auto_model)
    limits = Limits(positions(network), {})
    packing = Packing(recipe.data, _taken_for_granted(recipe.data, corpus.kind), [])
    with console.working("tokenising the data"):
        prepared = prepare(corpus, objective, tokenizer, packing.data, limits)
    joins = padding_free.is_applicable(recipe, recipe.data, corpus.kind)
    width = padding_free.row_width(network) if joins else None
    batches = training_batches(
        recipe, corpus, objective, tokenizer, packing, prepared, cast(Collator, collate), limits, (0, 1), width
    )
    given = list(islice(_given(batches, collate), count))
    lines = [zip(rows, objective.view.lines(rows, batch, tokenizer, network), strict=True) for rows, batch in given]
    laid = [_laid(batch, width, network.config.is_encoder_decoder) for _, batch in given]
    seen = [
        [(row["lengths"].tolist(), _bare(line) if is_laid else line) for row, line in batch]
        for batch, (is_laid, _) in zip(lines, laid, strict=True)
    ]
    places = [places for _, places in laid]
    padding, _ = fractions(seen, objective.view, sum(places))
    examples = _of_first_part(prepared, packing, limits) if isinstance(batches, Stream) else batches.examples
    return Shown(
        recipe, objective.view, render.Texts(tokenizer), seen, places, None if isinstance(batches, Stream) else len(batches),
        examples.lengths_by_column(), data_document(recipe, prepared, batches, padding),
        [*prepared.notes, *told, _spoken(limits, packing, joins)], prepared.warnings,
    )  # fmt: skip


def outline(model: Any, config: Any, tokenizer: Any, auto_model: Any) -> Any:
    """The network without weights: its shapes and its rules. Raises InputError as loading it would."""
    config = sized_config(config, model, tokenizer) if model.from_scratch else config
    try:
        with torch.device("meta"):
            network = auto_model.from_config(config, trust_remote_code=model.trust_remote_code)
    except LOADING as error:
        raise InputError(f"{model.name}: no {config.model_type} can be built like this: {error}") from None
    check_vocabulary(network, tokenizer, model.name)
    return network


def _taken_for_granted(data: Any, kind: str) -> DocumentMask | None:
    """That texts can be kept apart, without knowing how: nothing is computed here that would have to know."""
    return cast(DocumentMask, object()) if data.shares and kind == "text" else None


def _given(batches: BatchSampler | Stream, collate: Opened) -> Iterator[tuple[list[Row], Batch]]:
    if isinstance(batches, Stream):
        yield from cast(Iterator[tuple[list[Row], Batch]], iter(batches))
    else:
        yield from (collate([batches.examples[key] for key in keys]) for keys in batches)


def _laid(batch: Batch, width: int | None, pairs: bool) -> tuple[bool, int]:
    """(whether its rows are laid end to end; places for tokens, padding included)."""
    if width:
        shared, places = share_rows(padding_free.text_lengths(batch, pairs), width)
        return shared is not None, places
    return False, batch["input_ids"].numel() + (batch["labels"].numel() if pairs else 0)


def _bare(lines: Lines) -> Lines:
    """Without its padding: what little there is where rows lie end to end is of none of them."""
    bare = {name: [token for token in line if token.role != "pad"] for name, line in lines.items()}
    if "decoder_input" in bare:  # behind the last label the decoder would be shown that one
        bare["decoder_input"] = bare["decoder_input"][: len(bare["labels"])]
    return bare


def _of_first_part(prepared: PreparedData, packing: Packing, limits: Limits) -> Examples:
    return prepared.train.packed(limits.resolved["max_length"]) if packing.apart else prepared.train


def _spoken(limits: Limits, packing: Packing, joins: bool) -> str:
    lengths = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in limits.resolved.items())
    apart = "; texts that share a row are kept apart, if training finds that this model can" if packing.apart else ""
    laid = "; training lays the rows of a batch end to end, if it finds that this model can" if joins else ""
    return lengths + apart + laid


# --- as a document --------------------------------------------------------------------------------------------------
def document(seen: Shown) -> dict[str, Any]:
    """All of it, for --json."""
    padding, trained = fractions(seen.batches, seen.view, sum(seen.places))
    return {
        "objective": seen.recipe.objective,
        "model": seen.recipe.model.name,
        "kind": seen.data["kind"],
        "explanation": seen.view.explanation,
        "batches": [{"rows": [_row(seen, *row) for row in batch]} for batch in seen.batches],
        **({"batches_in_epoch": seen.of_epoch} if seen.of_epoch else {}),
        "padding_fraction": padding,
        "trained_fraction": trained,
        "lengths": {name: render.bins(column) for name, column in zip(seen.view.measures, seen.lengths, strict=True)},
        "data": seen.data,
    }


def _row(seen: Shown, texts: list[int], lines: Lines) -> dict[str, Any]:
    def told(token: Token) -> dict[str, Any]:
        asked = {} if token.label is None else {"label": token.label}
        other = {} if token.label in (None, token.id) else {"label_text": render.hexed(seen.texts(token.label))}
        return {"id": token.id, "text": render.hexed(seen.texts(token.id)), "role": token.role, **asked, **other}

    apart = {"texts": texts} if len(texts) > 1 else {}
    return {**{name: [told(token) for token in line] for name, line in lines.items()}, **apart}


def _harmless(text: str) -> str:
    """JSON with what is invisible escaped: the same to a parser, and nothing that steers a terminal."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


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
    ledgers = {name: seen.data[name] for name in ("train", "eval") if name in seen.data}
    out.print(ledger_table(ledgers))
    for source in seen.data.get("train_sources", ()):
        share = f", {source['share']:.1%} of every epoch" if "share" in source else ""
        say(
            Text(f"{visible(source['source'])}: {source['rows_used']:,} rows, {source['tokens_used']:,} tokens{share}")
        )
    for name, column in zip(view.measures, seen.lengths, strict=True):
        say(Text(), *render.histogram(render.bins(column), f"Rows by {seen.view.measures[name]}", out.width))
    out.print(Text("\n" + _summary(seen)))


def _drawn(seen: Shown, batch: list[Seen], width: int, most: int | None) -> list[Text]:
    """The lines of a batch, each row with its number in front."""
    titles = seen.view.titles
    margin = len(str(len(batch))) + 3 + max((len(title) + 2 for title in titles.values()), default=0)
    drawn = []
    for number, (texts, lines) in enumerate(batch, 1):
        for at, (name, line) in enumerate(lines.items()):
            starts = render.borders(texts) if len(texts) > 1 else set()
            pieces = render.pieces(line, starts, seen.view, seen.texts)
            filled = render.fill(pieces, render.padding(line, seen.view), max(width - margin, 20), most)
            head = f"{'' if at else number:>{len(str(len(batch))) + 1}}  {titles.get(name, '')}".ljust(margin)
            drawn += [Text.assemble((head if not i else " " * margin, "dim"), text) for i, text in enumerate(filled)]
    return drawn


def _heading(seen: Shown, number: int, batch: list[Seen]) -> str:
    padding, trained = fractions([batch], seen.view, seen.places[number - 1])
    sizes = [{len(lines[name]) for _, lines in batch} for name in seen.view.measures]
    size = " + ".join(f"{'up to ' if len(size) > 1 else ''}{max(size):,}" for size in sizes)
    of = f" of {seen.of_epoch:,}" if seen.of_epoch else ""
    rows = f"{len(batch)} row{'s' if batch[1:] else ''}"
    return f"Batch {number}{of}: {rows} of {size} tokens, {padding:.1%} padding, {trained:.1%} trained"


def _summary(seen: Shown) -> str:
    data, tokens = seen.data["train"], sum(int(column.sum()) for column in seen.lengths)
    if seen.of_epoch is None:
        return "A stream: the ledger and the lengths are those of what has been read for these batches."
    return (f"In the epoch: {data['padding_fraction']:.1%} padding; of the other tokens "
            f"{data['tokens_trained'] / tokens:.1%} are trained.")  # fmt: skip
