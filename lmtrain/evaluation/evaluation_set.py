"""The evaluation sets: which rows of the evaluation data are scored together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.config.eval import PairEval
from lmtrain.data.labels import Labels
from lmtrain.errors import InputError
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.label_metrics import label_metrics
from lmtrain.evaluation.likelihood import RowSums, metrics_of_sums
from lmtrain.evaluation.scores import SetScores
from lmtrain.evaluation.text_metrics import TextScorer, answer_scorer, build_text_scorer
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Examples


@dataclass(frozen=True)
class EvaluationSet:
    """Rows of the evaluation data, with metrics of their own."""

    rows: np.ndarray
    """Numbers of its rows (of its questions) in the evaluation data, in their order."""
    text_scorer: TextScorer | None = None
    """Compares generated outputs with references; None for objectives without references."""

    def likelihood(self, sums: RowSums, names: Collection[str], signature: str) -> dict[str, Metric]:
        """The likelihood metrics of these rows from the sums of all rows; those without their sums are left out."""
        own = {name: column[self.rows] for name, column in sums.items()}
        return metrics_of_sums(own, names, signature)

    def of_labels(self, true: Labels, predicted: Labels, signature: str, scheme: str) -> dict[str, Metric]:
        """The metrics of predicted labels under a scheme (label_metrics.py) from the labels of all rows."""
        own, given = ([labels[row] for row in self.rows] for labels in (true, predicted))
        return label_metrics(own, given, signature, scheme)

    def of_outputs(self, outputs: Sequence[str]) -> dict[str, Metric]:
        """Lmtrain's own text metrics of these rows from the outputs of all rows."""
        return self.text_scorer.score(self._own(outputs)) if self.text_scorer else {}

    def with_outputs(self, scores: SetScores, outputs: Sequence[str]) -> SetScores:
        """The scores, with all text metrics of these rows from the outputs of all rows."""
        assert self.text_scorer
        computed = scores.metrics | self.of_outputs(outputs)
        return SetScores(computed, self.text_scorer.custom_values(self._own(outputs), computed))

    def _own(self, outputs: Sequence[str]) -> list[str]:
        return [outputs[row] for row in self.rows]


def evaluation_sets(examples: Examples, decoding: PairEval | None) -> dict[str, EvaluationSet]:
    """The sets by name, in the order of the recipe; one of all rows, with an empty name, where they have no names.

    `decoding` are the settings of generation, if outputs are compared with references. Raises UsageError, InputError.
    """
    names = examples.evaluation_sets or ("",) * len(examples.ledgers)
    of_rows = np.array([names[source] for source in examples.source_of_rows()])
    found = {name: np.flatnonzero(of_rows == name) for name in dict.fromkeys(names)}
    if empty := [name for name, rows in found.items() if not _has_label(examples, rows)]:
        raise InputError(f"--eval-data {empty[0] or '…'}: nothing of it is left to score")
    units = examples.units
    scored = {name: np.unique(units[rows]) for name, rows in found.items()}
    return {name: EvaluationSet(rows, _scorer(examples, rows, decoding)) for name, rows in scored.items()}


def _has_label(examples: Examples, rows: np.ndarray) -> bool:
    """Whether any of these rows can be scored, as far as their labels are known before a batch is made."""
    column = examples.columns.get("labels")
    return bool(len(rows)) and (column is None or any((column[row] != IGNORED).any() for row in rows.tolist()))


def _scorer(examples: Examples, rows: np.ndarray, decoding: PairEval | None) -> TextScorer | None:
    if examples.texts is None:
        return None
    references = [examples.texts[row][1:] for row in rows]
    if examples.kind == "question":
        return answer_scorer(references)
    return build_text_scorer(references, decoding) if decoding else None
