"""Words and tags are read from the columns of known layouts; every other layout is refused with the reason."""

from pathlib import Path

import pytest

from lmtrain.config.labelled_data import LabelledData
from lmtrain.data import reading
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

ENTITIES = [(["EU", "rejects", "a", "call"], ["B-ORG", "O", "O", "O"]), (["Peter", "Blackburn"], ["B-PER", "I-PER"])]


def load(content: str, name: str = "a.conll", **options: object) -> Rows:
    Path(name).write_text(content, encoding="utf-8")
    return reading.load([name], LabelledData(train=["x"], **options))


def refusal(content: str, name: str = "a.conll") -> str:
    with pytest.raises(InputError) as caught:
        load(content, name)
    return str(caught.value)


def lines(row: str, mark: str = "\t", before: str = "") -> str:
    """The sentences of ENTITIES with a line for each word: `row` has {n}, {w} and {t}."""
    return "\n".join(
        before
        + "".join(
            row.format(n=n, w=w, t=t).replace(" ", mark) + "\n" for n, (w, t) in enumerate(zip(*s, strict=True), 1)
        )
        for s in ENTITIES
    )


@pytest.mark.parametrize("mark", ["\t", " "])
@pytest.mark.parametrize(
    ("row", "before", "note"),
    [
        ("{w} {t}", "", None),
        ("{w} {t}", "# id = 7 of many\n", None),
        ("{w} NN {t}", "", "has 3 columns; the words are read from the first, the tags from the last"),
        ("{w} NN I-NP {t}", "-DOCSTART- -X- -X- O\n\n", "has 4 columns"),
        ("{w} lemma NN I-NP {t}", "", "has 5 columns"),
        ("{n} {w} {t}", "", "is read as numbered words: the words from column 2, the tags from column 3"),
    ],
)
def test_words_and_tags_of_entities(row: str, before: str, note: str | None, mark: str):
    content = lines(row, mark, before if not before.startswith("-") else "")
    rows = load((before if before.startswith("-") else "") + content)
    assert rows.values == ENTITIES
    assert any(note in line for line in rows.notes) if note else rows.notes == []


CONLLU = "{n} {w} lemma {t} X _ 0 dep _ SpaceAfter=No"


@pytest.mark.parametrize("name", ["a.conllu", "a.conll", "a.txt", "a.tsv"])
def test_conllu_is_words_and_universal_tags(name: str):
    rows = load(lines(CONLLU, before="# sent_id = 1\n# text = EU rejects\n"), name)
    assert rows.values == ENTITIES
    assert rows.notes == [f"{name}: is read as CoNLL-U: the words from column 2, the tags from column 4"]


def test_ranges_and_empty_nodes_of_conllu_are_left_out():
    first, *others = lines(CONLLU).split("\n")
    extra = ["1-2\tEUrejects" + "\t_" * 8, first, "1.1\tnothing" + "\t_" * 8]
    rows = load("\n".join([*extra, *others]))
    assert rows.values == ENTITIES
    assert any("2 ranges (1-2) and empty nodes (1.1) are left out" in note for note in rows.notes)


def test_conllu_plus_names_its_columns():
    rows = load("# global.columns = ID FORM MISC UPOS\n" + lines("{n} {w} _ {t}"))
    assert rows.values == ENTITIES


@pytest.mark.parametrize("name", ["klue.tsv", "klue.conll"])
def test_characters_of_klue_with_comments_and_blanks(name: str):
    content = "## klue-0\t<경찰:OG>은 또\n경\tB-OG\n찰\tI-OG\n은\tO\n \tO\n또\tO\n\n## klue-1\t가\n가\tO\n#\tO\n"
    rows = load(content, name)
    assert rows.values == [(["경", "찰", "은", "또"], ["B-OG", "I-OG", "O", "O"]), (["가", "#"], ["O", "O"])]
    assert any("1 blank words are left out" in note for note in rows.notes)


def test_a_table_for_labels_stays_a_table():
    rows = load("text\tlabel\nhello there\tB-x\n\nbye\tO\n", "a.tsv", text_column="text", label_column="label")
    assert rows.values == [("hello there", "B-x"), ("bye", "O")]
    assert load("text\tlabel\na\tO\nb\tO\n", "b.tsv").kind == "labelled"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("word\nother\n", "a.conll, line 1: 'word' is a word without a tag"),
        (lines("{w} {t} X Y"), "has 4 columns, and the last holds no tags such as B-PER and O, but e.g. 'Y'"),
        (lines("{w} a b c d e f {t}"), "has 8 columns"),
        (lines("{t} {w} O"), "it is not known which hold the words and the tags"),
        (lines("{t} {w}"), "its first column looks like tags, e.g. 'B-ORG'"),
        (lines("{n} {w}"), "has 2 columns, of which the first numbers the words"),
        (lines("{n} {w} {t} O"), "has 4 columns, of which the first numbers the words"),
        (lines("{n} {w} lemma _ X _ 0 dep _ _"), "is CoNLL-U, but its fourth column, UPOS, is empty"),
    ],
)
def test_other_layouts_are_refused(content: str, reason: str):
    message = refusal(content)
    assert reason in message and "word and its tag" in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("three\tB-X\tO", "'three\\tB-X\\tO' has 3 columns, but the lines before have 2"),
        ("word", "'word' is a word without a tag"),
        ("word\t", "'word' is a word without a tag"),
        ("\tO", "'O' is a tag without a word"),
    ],
)
def test_a_line_that_is_no_word_and_tag_makes_its_sentence_bad(line: str, reason: str):
    content = lines("{w} {t}") + f"\nfine\tO\n{line}\nmore\tO\n\nlast\tO\n"
    assert f"a.conll, line 10: {reason}; --on-bad drop" in refusal(content)
    rows = load(content, on_bad="drop")
    assert rows.values == [*ENTITIES, (["last"], ["O"])] and rows.ledgers[0].rows_bad == 1
