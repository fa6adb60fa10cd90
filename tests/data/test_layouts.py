"""No half of an input is lost: what belongs together is joined, and what is left out is said."""

import json
from pathlib import Path

import pytest

from lmtrain.config.data import ClmData, PairData
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.columns import with_line_breaks
from lmtrain.data.rows import Rows


def load(row: dict, data: type = PairData, **options: object) -> Rows:
    Path("a.jsonl").write_text("".join(json.dumps(row | more) + "\n" for more in ({}, {"id": 2})))
    return reading.load(["a.jsonl"], data(train=["x"], **options))


LAYOUTS = {
    "alpaca": ({"instruction": "Do it.", "input": "this", "output": "done"}, "Do it.\nthis"),
    "alpaca without an input": ({"instruction": "Do it.", "input": "", "output": "done"}, "Do it."),
    "alpaca with null": ({"instruction": "Do it.", "input": None, "output": "done"}, "Do it."),
    "alpaca with a system prompt": (
        {"system": "Be kind.", "instruction": "Do it.", "input": "this", "output": "done"},
        "Be kind.\nDo it.\nthis",
    ),
    "dolly": ({"instruction": "Do it.", "context": "this", "response": "done", "category": "qa"}, "Do it.\nthis"),
    "orca": ({"system_prompt": "Be kind.", "question": "Who?", "response": "done"}, "Be kind.\nWho?"),
    "squad": ({"question": "Who?", "context": "Kim is.", "answer": "done"}, "question: Who? context: Kim is."),
    "flat squad": (
        {"question": "Who?", "context": "Kim is.", "answers": {"text": ["done"]}},
        "question: Who? context: Kim is.",
    ),
    "answers in a list": ({"question": "Who?", "answers": ["done"]}, "Who?"),
    "input alone": ({"input": "this", "output": "done"}, "this"),
    "capitals": ({"Instruction": "Do it.", "Input": "this", "Output": "done"}, "Do it.\nthis"),
    "squad in capitals": (
        {"Question": "Who?", "CONTEXT": "Kim is.", "Answer": "done"},
        "question: Who? context: Kim is.",
    ),
    "letters": ({"Q": "Who?", "A": "done", "label": 0}, "Who?"),
    "Korean": ({"질문": "누구?", "답변": "done"}, "누구?"),
}


@pytest.mark.parametrize("data", [PairData, ClmData])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_instruction_and_question_layouts_are_read_whole(layout: str, data: type):
    row, source = LAYOUTS[layout]
    rows = load(row, data)
    assert rows.values == [(source, "done")] * 2 and rows.warnings == []
    assert any(note.startswith("a.jsonl: using columns '") for note in rows.notes)


LABELLED = {
    "nsmc": ({"id": 1, "document": "good", "label": 1}, "good", "1"),
    "banking77": ({"text": "lost card", "category": "card"}, "lost card", "card"),
    "klue-nli": ({"premise": "p", "hypothesis": "h", "gold_label": "neutral"}, "p\nh", "neutral"),
    "xnli": ({"premise": "p", "hypothesis": "h", "label": 2}, "p\nh", "2"),
    "klue-sts": ({"sentence1": "a", "sentence2": "b", "labels": {"label": 3.7, "binary-label": 1}}, "a\nb", "1"),
    "qqp": ({"question1": "a", "question2": "b", "label": 0}, "a\nb", "0"),
    "ynat": ({"guid": "g", "title": "headline", "label": 4}, "headline", "4"),
}


@pytest.mark.parametrize("layout", LABELLED)
def test_labelled_layouts_are_read_whole(layout: str):
    row, text, label = LABELLED[layout]
    rows = load(row, LabelledData)
    assert rows.values == [(text, label)] * 2 and rows.warnings == []


@pytest.mark.parametrize(
    ("row", "data", "options", "left"),
    [
        (LAYOUTS["alpaca"][0], PairData, ("input", "output"), "instruction"),
        (LAYOUTS["alpaca"][0], ClmData, ("instruction", "output"), "input"),
        (LAYOUTS["squad"][0], PairData, ("question", "answer"), "context"),
        (LAYOUTS["alpaca with a system prompt"][0], ClmData, ("{instruction} {input}", "output"), "system"),
        ({"premise": "a", "hypothesis": "b", "label": "c"}, LabelledData, ("premise", "label"), "hypothesis"),
        ({"sentence1": "a", "sentence2": "b", "label": "c"}, LabelledData, ("sentence2", "label"), "sentence1"),
    ],
)
def test_a_partner_that_is_not_selected_is_named_with_the_flag(row: dict, data: type, options: tuple, left: str):
    flags = {PairData: ("source", "target"), ClmData: ("prompt", "completion"), LabelledData: ("text", "label")}[data]
    rows = load(row, data, **{f"{name}_column": path for name, path in zip(flags, options, strict=True)})
    (warning,) = rows.warnings
    assert warning.startswith(f"a.jsonl: column '{left}' is not used") and f"--{flags[0]}-column '" in warning
    template = warning.partition("-column ")[2].strip("'")
    both = load(row, data, **{f"{flags[0]}_column": template, f"{flags[1]}_column": options[1]})
    assert both.warnings == [] and row[left] in both.values[0][0]


def test_a_partner_in_capitals_is_named_as_the_table_spells_it():
    rows = load(
        {"Question": "Who?", "Context": "Kim is.", "Answer": "done"}, source_column="Question", target_column="Answer"
    )
    (warning,) = rows.warnings
    assert warning.startswith("a.jsonl: column 'Context' is not used") and "'{Question}\\n{Context}'" in warning


def test_small_letters_take_precedence_over_capitals():
    row = {"Text": "no", "text": "yes"}
    assert load(row, ClmData).values == ["yes", "yes"]


def test_an_empty_partner_and_one_that_is_no_text():
    row = {"instruction": "Do it.", "input": " ", "history": [["a", "b"]], "output": "done"}
    rows = load(row, ClmData, prompt_column="instruction", completion_column="output")
    assert rows.warnings == ["a.jsonl: column 'history' is not used: it does not hold text"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}\\n{b}", "x\ny"),
        ("{a}\n{b}", "x\ny"),
        ("{a}\\t{b}", "x\ty"),
        ("{a}\\\\n{b}", "x\\ny"),
        ("{a}\n{empty}\n{b}", "x\ny"),
        ("{empty}\n{a}", "x"),
        ("{a}\nnothing: {null}\n", "x\n"),
        ("{a} {number}", "x 7"),
        ("### {a}\n\n{b}\n", "### x\n\ny\n"),
    ],
)
def test_line_breaks_of_templates(template: str, text: str):
    row = {"a": "x", "b": "y", "empty": " ", "null": None, "number": 7, "target": "t"}
    assert load(row, source_column=template, target_column="target").values[0] == (text, "t")


def test_a_column_is_no_template():
    assert load({"a\\n{b}": "x", "target": "t"}, source_column="a\\n{b}", target_column="target").values[0][0] == "x"
    assert with_line_breaks("a\\\\b\\x") == "a\\b\\x"
