"""The section `data` of labelled texts and tagged words: for `classify` and `probe`."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from lmtrain.config.data import Data, Split
from lmtrain.config.options import option
from lmtrain.config.values import Length, Strings

PAIR_SEPARATOR = "\x1e"
"""Between the two texts of a pair of sentences, until they are tokens."""


def joined_pair(first: str, second: str) -> str:
    """The template of a pair of texts; each is a column or a template itself."""
    return PAIR_SEPARATOR.join(part if "{" in part else f"{{{part}}}" for part in (first, second))


class Labelled(Split):
    """The columns of labelled texts and of tagged words."""

    KINDS: ClassVar[tuple[str, ...]] = ("labelled", "tagged")

    text_column: str | None = option(None, aliases=("dataset_text_field",))
    """Column of the texts to classify. Default: detected from the column names and reported."""
    label_column: str | None = option(None)
    """Column of the labels: text, numbers, or true and false."""
    tokens_column: str | None = option(None)
    """For tagging: column of the words, as a list or as text that is split at whitespace."""
    tags_column: str | None = option(None)
    """For tagging: column of the tags, one per word. A text file is read as CoNLL: one word per line, its tag last."""

    @property
    def unit(self) -> str:
        return "sentence"


class ClassData(Labelled, Data):
    KINDS = ("labelled", "tagged", "question")

    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = option(
        None, hidden="training"
    )
    """What a label is: one of several, any of several, or a number. Default: any of several where the column holds lists."""
    question_column: str | None = option(None, hidden="training")
    """For answers in a text: column of the questions."""
    context_column: str | None = option(None, hidden="training")
    """For answers in a text: column of the texts that hold the answers."""
    answers_column: str | None = option(None, hidden="training")
    """For answers in a text: column of the answers, as in SQuAD, with answer_start; empty where there is none."""
    doc_stride: int | None = option(None, ge=0, hidden="training")
    """Tokens that two windows of a long context share. Default: 128, and at most a third of a window."""
    text_pair_column: str | None = option(None)
    """Column of the second text of a pair, e.g. hypothesis; the model reads both with a separator between them."""
    max_length: Length | None = option(None, short="L", aliases=("block_size", "max_seq_length"))
    """Maximum tokens per row, or per window of a context. Default: the model's, at most 512; of a window at most 384."""
    on_long: Literal["truncate", "drop", "error"] = option("truncate")
    """Rows that are longer than the maximum length."""

    @property
    def joint(self) -> str:
        return PAIR_SEPARATOR

    @model_validator(mode="after")
    def _labels_are_known_before(self) -> Self:
        if self.streaming:
            raise ValueError("--streaming: all labels must be known before training; drop --streaming")
        if self.text_pair_column and not (self.text_column and self.label_column):
            raise ValueError("--text-pair-column: needs --text-column and --label-column")
        return self


class LabelledData(Labelled):
    eval: Strings = option([], flag="eval_data", aliases=("validation_file", "eval_data"))
    val_split: float = option(0.2, aliases=("validation_split",), gt=0, lt=1)
    """Without --eval-data: fraction of the rows held out for evaluation, shuffled by --seed as in training."""

    @model_validator(mode="after")
    def _has_one_evaluation_set(self) -> Self:
        if self.eval_sets:
            raise ValueError("--eval-data NAME=…: probe has a single evaluation set; leave out the name")
        return self
