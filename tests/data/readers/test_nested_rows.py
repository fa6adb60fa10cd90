"""Questions that are nested as in SQuAD, and instances as in Self-Instruct, are rows wherever they are read."""

import io
import json
from pathlib import Path

import pytest

from lmtrain.config.data import ClmData, PairData
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

TEMPLATE = {"source_column": "question: {question} context: {context}", "target_column": "answers.text"}


def question(n: int, answers: list[str], **more: object) -> dict:
    return {"id": n, "question": f"who {n}?", "answers": [{"text": a, "answer_start": 3} for a in answers], **more}


QUESTIONS = [question(0, ["Kim", "Kim Gu"]), question(1, []), question(2, ["Ahn"]), question(3, [" "])]
EXPECTED = [("question: who 0? context: Here.", "Kim", "Kim Gu"), ("question: who 2? context: There.", "Ahn")]


def paragraphs(outer: dict) -> list[dict]:
    return [{"context": "Here.", "qas": QUESTIONS[:2], **outer}, {"context": "There.", "qas": QUESTIONS[2:], **outer}]


FILES = {
    "squad.json": json.dumps({"version": "2.0", "data": [{"title": "T", "paragraphs": paragraphs({})}]}),
    "klue.json": json.dumps({"version": "1", "data": [{"title": "T", "source": "s", "paragraphs": [p]} for p in paragraphs({})]}),
    "korquad2.json": json.dumps({"data": [
        {"context": p["context"], "qas": [{"question": q["question"], "answer": a}]}
        for p in paragraphs({}) for q in p["qas"] for a in [q["answers"][0] if q["answers"] else {"text": ""}]
    ]}),
    "articles.jsonl": "".join(json.dumps({"title": "T", "paragraphs": [p]}) + "\n\n" for p in paragraphs({})),
    "one.json": json.dumps({"title": "T", "paragraphs": paragraphs({})}),
    "array.json": json.dumps(paragraphs({"title": "T"}), indent=1),
    "strings.jsonl": "".join(
        json.dumps({**p, "qas": [{**q, "answers": [a["text"] for a in q["answers"]]} for q in p["qas"]]}) + "\n"
        for p in paragraphs({})
    ),
    "flat.jsonl": "".join(
        json.dumps({"context": p["context"], "question": q["question"], "answers": {"text": [a["text"] for a in q["answers"]]}}) + "\n"
        for p in paragraphs({}) for q in p["qas"]
    ),
    "flat_objects.jsonl": "".join(json.dumps({"context": p["context"], **q}) + "\n" for p in paragraphs({}) for q in p["qas"]),
}  # fmt: skip


def load(name: str, data: type = PairData, **options: object) -> Rows:
    return reading.load([name], data(train=["x"], **options))


@pytest.mark.parametrize("options", [TEMPLATE, {}])
@pytest.mark.parametrize("name", FILES)
def test_each_question_is_a_row(name: str, options: dict[str, str]):
    Path(name).write_text(FILES[name])
    rows = load(name, **options)
    assert [row[:2] for row in rows.values] == [row[:2] for row in EXPECTED]
    if name != "korquad2.json":
        assert rows.values == EXPECTED
    assert (rows.ledgers[0].rows_empty, rows.ledgers[0].rows_bad) == (2, 0)
    nested = "flat" not in name
    assert any(note.startswith(f"{name}: 4 questions, nested as in SQuAD") for note in rows.notes) == nested
    assert any("2 of the questions have no answer" in note for note in rows.notes) == nested


def test_a_row_count_counts_questions():
    Path("squad.json").write_text(FILES["squad.json"])
    assert load("squad.json#3").values == EXPECTED


def test_causal_models_take_the_first_answer_and_say_so():
    Path("squad.json").write_text(FILES["squad.json"])
    rows = load("squad.json", ClmData)
    assert rows.values == [row[:2] for row in EXPECTED]
    assert any(
        "1 lists in 'answers.text' have several texts, of which the first is used" in note for note in rows.notes
    )


def test_labels_of_questions_can_be_probed():
    questions = [question(n, ["x"], question_type=n % 3, is_impossible=False) for n in range(6)]
    Path("klue.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": questions}]}]}))
    rows = load("klue.json", LabelledData, text_column="question", label_column="question_type")
    assert [label for _, label in rows.values] == ["0", "1", "2"] * 2


def test_standard_input_is_read_likewise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(FILES["articles.jsonl"].encode())))
    assert load("-").values == EXPECTED


TASKS = [
    {
        "id": "a",
        "instruction": "Relate.",
        "instances": [{"input": "day", "output": "night"}, {"input": "", "output": "x"}],
    },
    {"id": "b", "instruction": "Greet.", "instances": [{"input": "", "output": "Hello."}], "is_classification": False},
]
INSTANCES = [("Relate.\nday", "night"), ("Relate.", "x"), ("Greet.", "Hello.")]
TASK_FILES = {
    "tasks.jsonl": "".join(json.dumps(task) + "\n" for task in TASKS),
    "tasks.json": json.dumps(TASKS, indent=1),
    "wrapped.json": json.dumps({"version": 1, "tasks": TASKS}),
}


@pytest.mark.parametrize("data", [ClmData, PairData])
@pytest.mark.parametrize("name", TASK_FILES)
def test_each_instance_of_an_instruction_is_a_row(name: str, data: type):
    Path(name).write_text(TASK_FILES[name])
    rows = load(name, data)
    assert rows.values == INSTANCES
    assert any(note.startswith(f"{name}: 3 instances, nested as in Self-Instruct") for note in rows.notes)


def test_an_instance_without_an_output_is_a_bad_row():
    task = {"instruction": "Greet.", "instances": [{"input": "", "output": "Hello."}, {"input": "you"}]}
    Path("tasks.jsonl").write_text(json.dumps(task) + "\n")
    with pytest.raises(InputError, match=r"^tasks.jsonl, line 2, column 'output': is missing"):
        load("tasks.jsonl", ClmData)
    assert load("tasks.jsonl", ClmData, on_bad="drop").ledgers[0].rows_bad == 1
