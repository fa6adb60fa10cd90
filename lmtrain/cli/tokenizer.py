"""`lmtrain tokenizer`: train a tokenizer, or see how one suits a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmtrain.cli.common import SETTINGS, Json, check_new, short_name
from lmtrain.config.data import ClmData
from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES
from lmtrain.errors import StorageError, UsageError
from lmtrain.runtime.console import Console, format_number
from lmtrain.runtime.libraries import loading_libraries

if TYPE_CHECKING:
    from lmtrain.data.rows import Rows

app = typer.Typer(
    help="Train a tokenizer, or see how some suit a text.", no_args_is_help=True, context_settings=SETTINGS
)

DataFlag = Annotated[list[str], typer.Option("--data", "-d", help="As for training: file, folder, glob, -, hub id.")]
Column = Annotated[str | None, typer.Option("--text-column", help="Column of the text.", show_default=False)]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Encoding of text files. Default: UTF-8.", show_default=False)
]
ColumnNames = Annotated[
    str | None, typer.Option("--columns", help="Names of the columns of a table without a header.", show_default=False)
]
OnBad = Annotated[
    Literal["error", "drop"], typer.Option("--on-bad", help="Rows without usable text: stop, or drop them.")
]


def _text_rows(
    data: list[str],
    text_column: str | None,
    encoding: str | None,
    columns: str | None,
    on_bad: Literal["error", "drop"],
    console: Console,
) -> "Rows":
    from lmtrain.data import reading

    names = columns.split(",") if columns else []
    section = ClmData(train=data, text_column=text_column, encoding=encoding, columns=names, on_bad=on_bad)
    rows = reading.load(data, section)
    for line in rows.notes:
        console.note(line)
    return rows


@app.command("train")
def tokenizer_train(
    data: DataFlag,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write.")],
    kind: Annotated[str, typer.Option(help="bpe:N, wordpiece:N, unigram:N, char or byte.")] = "bpe:8000",
    objective: Annotated[str, typer.Option(help="clm, mlm, seq2seq or classify: decides the special tokens.")] = "clm",
    text_column: Column = None,
    encoding: Encoding = None,
    columns: ColumnNames = None,
    on_bad: OnBad = "error",
) -> None:
    """Train a tokenizer on text."""
    from lmtrain.config.architectures import TRAINED

    if not TRAINED.fullmatch(kind):
        raise UsageError(f"--kind {kind}: write bpe:8000, wordpiece:8000, unigram:8000, char or byte")
    if objective not in RECIPES:
        raise UsageError(f"--objective {objective}: {', '.join(RECIPES)}")
    check_new(output_dir)
    rows = _text_rows(data, text_column, encoding, columns, on_bad, console := Console())
    with loading_libraries(console):
        from lmtrain.objectives.objective import OBJECTIVES
        from lmtrain.preprocessing.text_pieces import training_texts
        from lmtrain.preprocessing.train_tokenizer import train_tokenizer
    trained = train_tokenizer(kind, training_texts(rows.texts()), OBJECTIVES[objective].special_tokens)
    try:
        trained.save_pretrained(output_dir)
    except OSError as error:
        raise StorageError(f"{output_dir}: {error.strerror}") from None
    console.note(f"{len(trained):,} entries in {output_dir} · next: lmtrain tokenizer stats {output_dir} --data …")


@app.command("stats")
def tokenizer_stats(
    tokenizers: Annotated[list[str], typer.Argument(help="Folders or hub ids; several are put side by side.")],
    data: DataFlag,
    text_column: Column = None,
    encoding: Encoding = None,
    columns: ColumnNames = None,
    on_bad: OnBad = "error",
    json: Json = False,
) -> None:
    """Tokens per word, bytes per token and the share of unknown tokens on your text."""
    rows = _text_rows(data, text_column, encoding, columns, on_bad, console := Console(as_json=json))
    with loading_libraries(console):
        from lmtrain.modeling.tokenizer import load_tokenizer
        from lmtrain.preprocessing.tokenizing import stats
    found = []
    for name in tokenizers:
        loaded = load_tokenizer(Model(name=name))
        for line in loaded.notes:
            console.note(line)
        found.append({"tokenizer": name, **stats(loaded.tokenizer, rows.texts())})
    measures = [measure for measure in found[0] if measure != "tokenizer"]
    table = [(measure, *(format_number(values[measure]) for values in found)) for measure in measures]
    if len(found) == 1:
        console.result({m: found[0][m] for m in measures}, table, title=short_name(tokenizers[0]))
    else:
        header = ("", *map(short_name, tokenizers))
        console.result(found, table, title="Tokenizers on the same texts", header=header)
