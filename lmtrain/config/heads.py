"""The heads that `classify` puts on an encoder: one for each kind of rows with labels."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """A head, by the names that the libraries have for it."""

    suffix: str
    """What the names of transformers' classes end with; AutoModel has a class with the same ending."""
    table: str
    """Transformers' table of the model types that have such a class."""
    task_type: str
    """Peft's name of the task."""
    pipeline_tag: str
    """The Hub's name of the task."""
    problem_type: str | None = None
    """Transformers' name of the problem, where one class has several."""

    @property
    def auto_class(self) -> str:
        return f"AutoModel{self.suffix}"


_TEXTS = (
    "ForSequenceClassification",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "SEQ_CLS",
    "text-classification",
)

HEADS = {
    "labelled": Head(*_TEXTS),
    "several": Head(*_TEXTS, problem_type="multi_label_classification"),
    "number": Head(*_TEXTS, problem_type="regression"),
    "tagged": Head(
        "ForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "TOKEN_CLS",
        "token-classification",
    ),
    "question": Head(
        "ForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "QUESTION_ANS",
        "question-answering",
    ),
}
"""Kind of rows -> the head that learns from them."""

PROBLEM_TYPES = {head.problem_type: kind for kind, head in HEADS.items() if head.problem_type}
"""Transformers' name of a problem -> kind of rows."""


def kind_of(architectures: Iterable[str] | None, problem_type: str | None = None) -> str | None:
    """The kind of rows that the head of a model of these classes learns from; None of a model without such a head."""
    kinds = (kind for name in architectures or () for kind, head in HEADS.items() if name.endswith(head.suffix))
    kind = next(kinds, None)
    return PROBLEM_TYPES.get(problem_type or "", kind) if kind == "labelled" else kind
