"""Tagged words: reading CoNLL files, entity spans, label metrics and the baseline, against values worked out by hand."""

from pathlib import Path

import pytest
from conftest import lmtrain

from lmtrain.commands.probe.labels import baseline
from lmtrain.config.labelled_data import LabelledData
from lmtrain.data.reading import load
from lmtrain.errors import InputError
from lmtrain.evaluation.entities import entities
from lmtrain.evaluation.label_metrics import label_metrics

# Tags -> entities as (start, end, type): the spans of conlleval, worked out by hand from its two tables.
MARKED = {
    "O O": [],
    "B-PER I-PER O B-LOC": [(0, 2, "PER"), (3, 4, "LOC")],
    "B-PER B-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "I-PER I-PER O I-LOC": [(0, 2, "PER"), (3, 4, "LOC")],
    "O I-PER": [(1, 2, "PER")],
    "B-PER I-LOC I-LOC": [(0, 1, "PER"), (1, 3, "LOC")],
    "I-PER B-PER I-PER": [(0, 1, "PER"), (1, 3, "PER")],
    "S-PER S-PER B-LOC I-LOC E-LOC": [(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC")],
    "B-PER E-PER I-PER": [(0, 2, "PER"), (2, 3, "PER")],
    "S-PER I-PER E-PER": [(0, 1, "PER"), (1, 3, "PER")],
    "E-PER E-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "B-PER S-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "U-PER B-LOC L-LOC": [(0, 1, "PER"), (1, 3, "LOC")],
    "PER PER O LOC PER": [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER")],
    "B I O I": [(0, 2, ""), (3, 4, "")],
    "B-creative-work I-creative-work": [(0, 2, "creative-work")],
}


@pytest.mark.parametrize("tags", MARKED)
def test_entities_match_conlleval(tags: str):
    assert sorted(entities(tags.split())) == MARKED[tags]


def test_an_entity_is_correct_only_if_both_ends_and_the_type_match():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"], ["O", "O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG", "I-ORG"], ["O", "O", "I-PER"]]
    found = label_metrics(true, predicted, "", "entities")
    # In both: the first PER. Predicted: PER, ORG, ORG, PER. True: PER, LOC, ORG. Words: 3 of 4, 1 of 3, 2 of 3.
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {"accuracy": 6 / 10, "entity_precision": 1 / 4, "entity_recall": 1 / 3, "entity_f1": 2 / 7}
    )
    assert found["entity_f1"].of_row(0) == pytest.approx(1 / 2)


def test_f1_is_zero_without_any_entity():
    found = label_metrics([["O", "O"]], [["O", "O"]], "", "entities")
    assert {name: metric.value for name, metric in found.items()} == {
        "accuracy": 1.0,
        "entity_precision": 0.0,
        "entity_recall": 0.0,
        "entity_f1": 0.0,
    }


def test_macro_f1_averages_over_labels_that_are_true_or_predicted():
    true, predicted = [["a"], ["a"], ["a"], ["b"], ["c"]], [["a"], ["a"], ["b"], ["b"], ["d"]]
    found = label_metrics(true, predicted, "", "classes")
    # a: 2 right, 3 true, 2 predicted; b: 1, 1, 2; c: 0, 1, 0; d: 0, 0, 1.
    assert found["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3 + 0 + 0) / 4)
    assert found["accuracy"].value == pytest.approx(3 / 5)
    assert found["macro_f1"].of_row(0) == 1.0, "absent labels do not count"


# --- files -----------------------------------------------------------------------------------------------------------

SENTENCES = [(["EU", "rejects", "it"], ["B-ORG", "O", "O"]), (["Peter"], ["B-PER"])]


def read(name: str, **columns: str):
    return load([name], LabelledData(train=[name], **columns))


@pytest.mark.parametrize(
    "content, notes",
    [
        ("EU B-ORG\nrejects O\nit O\n\nPeter B-PER\n", []),
        ("EU\tB-ORG\nrejects\tO\nit\tO\n\t\nPeter\tB-PER", []),
        (
            "\n\n-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\r\nrejects VBZ B-VP O\r\nit PRP B-NP O\r\n\r\n\r\n"
            "Peter NNP B-NP B-PER\r\n",
            ["x.conll: has 4 columns; the words are read from the first, the tags from the last"],
        ),
    ],
    ids=["blanks", "tabs", "four columns"],
)
def test_conll_files_are_read_sentence_by_sentence(content: str, notes: list[str]):
    Path("x.conll").write_bytes(content.encode())
    rows = read("x.conll")
    assert rows.values == SENTENCES
    assert (rows.kind, rows.notes) == ("tagged", notes)
    first = content.replace("\r", "").split("\n").index(next(line for line in content.splitlines() if "EU" in line))
    assert rows.location(0) == f"x.conll, line {first + 1}"


def test_row_limit_of_a_conll_file_counts_sentences():
    Path("x.conll").write_text("EU B-ORG\nrejects O\nit O\n\nPeter B-PER\n\nPaul B-PER\n")
    assert read("x.conll#2").values == SENTENCES


def test_words_may_contain_spaces_if_columns_are_separated_by_tabs():
    Path("x.conll").write_text("New York\tB-LOC\n1\xa0000\tO\n")
    assert read("x.conll").values == [(["New York", "1\xa0000"], ["B-LOC", "O"])]


@pytest.mark.parametrize("line", ["rejects", "rejects\t", "\tO"])
def test_a_word_without_a_tag_is_reported_with_its_line(line: str):
    Path("x.conll").write_text(f"EU B-ORG\n\nPeter B-PER\n{line}\n")
    with pytest.raises(InputError, match=r"^x\.conll, line 4: '\w+' is a word without a tag"):
        read("x.conll")


def test_columns_may_hold_lists_or_strings():
    Path("lists.jsonl").write_text(
        '{"tokens": ["EU", "rejects", "it"], "tags": ["B-ORG", "O", "O"]}\n{"tokens": ["Peter"], "tags": ["B-PER"]}\n'
    )
    Path("strings.csv").write_text("words,entities\nEU rejects it,B-ORG O O\nPeter,B-PER\n")
    assert read("lists.jsonl").values == SENTENCES
    assert read("strings.csv", tokens_column="words", tags_column="entities").values == SENTENCES


def test_different_numbers_of_words_and_tags_are_refused():
    Path("x.csv").write_text("words,entities\nEU rejects it,B-ORG O O\nPeter went,B-PER\n")
    columns = ["--tokens-column", "words", "--tags-column", "entities"]
    outcome = lmtrain("probe", "--model", "bert", "--data", "x.csv", *columns)
    assert outcome.code == 3
    assert "x.csv, line 3, columns 'words' and 'entities': 2 words, but 1 tags" in outcome.err


def test_baseline_predicts_the_most_frequent_tag_of_each_word():
    Path("x.conll").write_text("a X\nb Y\na X\nc O\nc O\nd O\n\na Y\n")
    train = read("x.conll")
    Path("y.conll").write_text("a O\nb O\nz O\n")
    method, predictions = baseline(train, read("y.conll"))
    assert method == "each word's commonest tag in training"
    assert predictions == [["X", "Y", "O"]]
