"""The prompts of `generate` are made of rows as the run made its inputs, or as training would read the rows."""

import io
import json
from pathlib import Path

import pytest

from lmtrain.config.data import Prompts
from lmtrain.data import prompts
from lmtrain.errors import InputError

QUESTION = {"question": "Who?", "context": "Kim is.", "answer": "Kim"}
TEMPLATE = "question: {question} context: {context}"


def ask(
    rows: object, of_run: str | None = None, name: str = "a.jsonl", **options: object
) -> tuple[list, int, list[str]]:
    lines = "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else str(rows)
    Path(name).write_text(lines)
    return prompts.read(Prompts(data=[name], **options), of_run)


@pytest.mark.parametrize(
    ("row", "of_run", "options", "prompt"),
    [
        (QUESTION, TEMPLATE, {}, "question: Who? context: Kim is."),
        (QUESTION, None, {}, "question: Who? context: Kim is."),
        (QUESTION, "question", {}, "Who?"),
        (QUESTION, TEMPLATE, {"column": "context"}, "Kim is."),
        (QUESTION, None, {"column": "{context}\\n{question}"}, "Kim is.\nWho?"),
        ({"q": "Who?", "c": "Kim is."}, "{q}\\n{c}", {}, "Who?\nKim is."),
        ({"doc": {"body": "deep"}, "text": "x"}, "doc.body", {}, "deep"),
        ({"instruction": "Do it.", "input": "this"}, None, {}, "Do it.\nthis"),
        ({"instruction": "Do it.", "input": ""}, None, {}, "Do it."),
        ({"text": "hello"}, TEMPLATE, {}, "hello"),
        ({"anything": "hello"}, None, {}, "hello"),
    ],
)
def test_a_row_becomes_a_prompt(row: dict, of_run: str | None, options: dict[str, str], prompt: str):
    found, empty, notes = ask([row, row], of_run, **options)
    assert (found, empty) == ([prompt] * 2, 0)
    assert any(note.startswith("a.jsonl: using '") for note in notes)


def test_a_part_of_the_runs_columns_is_refused():
    with pytest.raises(
        InputError, match=r"a\.jsonl: no column 'context', but the model was trained on 'question: .*--column"
    ):
        ask([{"question": "Who?", "text": "x"}], TEMPLATE)


def test_a_partner_that_is_left_out_is_said():
    _, _, notes = ask([QUESTION], "question")
    assert (
        "a.jsonl: column 'context' is not used; a template includes it, e.g. --column '{question}\\n{context}'"
        in notes
    )


def test_lines_of_text_are_finished_prompts(monkeypatch: pytest.MonkeyPatch):
    assert ask("Who?\n\nWhere?\n", TEMPLATE, "a.txt")[:2] == (["Who?", "Where?"], 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Who?\n")))
    assert prompts.read(Prompts(), TEMPLATE)[0] == ["Who?"]


def test_a_table_without_a_header():
    assert ask("1\tWho?\n2\tWhere?\n", None, "a.tsv", columns=",question")[0] == ["Who?", "Where?"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": 7}', r"a\.jsonl, line 2, column 'text': is not text"),
        ('{"text": "a', r"a\.jsonl, line 2, column 10: not JSON"),
        ('{"id": 1}', r"a\.jsonl, line 2, column 'text': is missing"),
    ],
)
def test_a_row_that_is_no_prompt_is_located(line: str, reason: str):
    with pytest.raises(InputError, match=reason):
        ask('{"text": "a"}\n' + line + "\n")
