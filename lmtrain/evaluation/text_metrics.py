"""Metrics of generated text against references: offline, in every script, each with the signature of how it was computed.

All lie between 0 and 100; only TER may be more.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from lmtrain import metrics
from lmtrain.config.eval import PairEval
from lmtrain.evaluation import custom_metrics
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.label_metrics import SCHEMES
from lmtrain.evaluation.scripts import CHARACTER, Script, detect_script

Texts = Sequence[str]
References = Sequence[Sequence[str]]
"""The references of each row, at least one."""

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class TextScorer:
    """Compares predictions with references."""

    references: References
    script: Script
    names: tuple[str, ...]
    """Names of lmtrain's own metrics to compute."""
    custom: dict[str, Any]
    """Requested name -> evaluate.EvaluationModule."""

    def score(self, predictions: Texts) -> dict[str, Metric]:
        """The values of lmtrain's own metrics."""
        return score(predictions, self.references, self.script, self.names)

    def custom_values(self, predictions: Texts, taken: Collection[str]) -> dict[str, tuple[float, str]]:
        """(value, signature) of every number that the custom metrics return.

        The name of its metric is put in front of a number whose own name is `taken` or occurs twice.
        """
        found: dict[str, tuple[float, str]] = {}
        for name, metric in self.custom.items():
            for key, value in custom_metrics.compute(name, metric, predictions, self.references).items():
                clash = key in taken or key in found or key == "loss"  # Trainer would log it as eval_loss
                found[f"{Path(name).stem}_{key}" if clash else key] = value, f"evaluate:{name}"
        return found


def build_text_scorer(references: References, section: PairEval) -> TextScorer:
    """The scorer that a recipe's eval section asks for. Raises UsageError, InputError."""
    texts = (text for row in references for text in row)
    script = detect_script(texts, section.bleu_tokenize, section.rouge_tokenize)
    custom = {name: custom_metrics.load(name) for name in section.other_metrics}
    return TextScorer(references, script, section.text_metrics, custom)


def answer_scorer(references: References) -> TextScorer:
    """The scorer of answers to questions: the metrics of SQuAD."""
    script = detect_script((text for row in references for text in row), None, None)
    return TextScorer(references, script, SCHEMES["answers"], {})


def score(
    predictions: Texts, references: References, script: Script, names: Collection[str] = metrics.TEXT_METRICS
) -> dict[str, Metric]:
    """The metrics `names`, in the order of TEXT_METRICS."""
    rouges = [name for name in ROUGES if name in names]
    functions: dict[str, Callable[[Texts, References, Script], Metric]] = {
        "bleu": _bleu,
        "chrf": partial(_sacrebleu, CHRF()),
        "chrfpp": partial(_sacrebleu, CHRF(word_order=2)),
        "ter": _ter,
        "exact_match": _exact_match,
        "f1": _f1,
    }
    computed = {n: function(predictions, references, script) for n, function in functions.items() if n in names}
    if rouges:
        computed |= _rouge(rouges, predictions, references, script)
    return {name: computed[name] for name in metrics.TEXT_METRICS if name in computed}


# --- sacrebleu -------------------------------------------------------------------------------------------------------


def _sacrebleu(
    metric: Any, predictions: Texts, references: References, script: Script, maximum: float = 100.0
) -> Metric:
    """A metric of sacrebleu from its own sufficient statistics; rounding may put a score just above the `maximum`."""
    streams = [list(stream) for stream in zip_longest(*references)]  # None where a row has fewer references
    statistics = metric._extract_corpus_statistics(list(predictions), streams)
    return Metric(
        np.array(statistics, dtype=np.float64),
        lambda sums: min(metric._compute_score_from_stats(sums.tolist()).score, maximum),
        str(metric.get_signature()),
    )


def _bleu(predictions: Texts, references: References, script: Script) -> Metric:
    """BLEU; with the effective n-gram order (eff:yes) if every reference is shorter than four words."""
    tokenized = BLEU(tokenize=script.bleu, force=True)
    longest = max(len(tokenized._preprocess_segment(text).split()) for texts in references for text in texts)
    metric = BLEU(tokenize=script.bleu, force=True, effective_order=longest < 4)
    return _sacrebleu(metric, predictions, references, script)


def _ter(predictions: Texts, references: References, script: Script) -> Metric:
    """TER; over characters in scripts without spaces, where a sentence would be one word."""
    if script.spaced:
        return _sacrebleu(TER(), predictions, references, script, inf)
    if script.name in ("Chinese", "Japanese"):
        return _sacrebleu(TER(normalized=True, asian_support=True), predictions, references, script, inf)
    characters = [" ".join(text.replace(" ", "")) for text in predictions]
    references = [[" ".join(text.replace(" ", "")) for text in texts] for texts in references]
    ter = _sacrebleu(TER(), characters, references, script, inf)
    return Metric(ter.statistics, ter.score, f"{ter.signature}|unit:character")


# --- ROUGE -----------------------------------------------------------------------------------------------------------


class _Tokenizer:
    """The object that rouge_score expects."""

    def __init__(self, split: Callable[[str], list[str]]):
        self.tokenize = split


def _rouge(names: list[str], predictions: Texts, references: References, script: Script) -> dict[str, Metric]:
    """F-measures of ROUGE (Lin 2004) by rouge_score: the best reference of each row, averaged over the rows."""
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = script.split and _Tokenizer(script.split)
    scorer = RougeScorer(names, tokenizer=tokenizer)
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        scores = scorer.score_multi(texts, prediction)
        # A text of one unit has no bigrams, so its ROUGE-2 would be 0 even where the prediction equals the reference.
        same = tokenizer is not None and any(_same(tokenizer.tokenize, prediction, text) for text in texts)
        rows.append([1.0 if same else scores[name].fmeasure for name in names])
    signature = f"nrefs:{_count(references)}|unit:{script.units}|case:lc|stem:no|rouge-score:{version('rouge-score')}"
    return {name: _average(column, signature) for name, column in zip(names, np.array(rows).T, strict=True)}


def _same(tokenize: Callable[[str], list[str]], prediction: str, text: str) -> bool:
    units = tokenize(text)
    return units == tokenize(prediction) if units else prediction.strip() == text.strip()


def _average(rows: Sequence[float] | np.ndarray, signature: str) -> Metric:
    """The mean over rows, in per cent, of numbers [rows] between 0 and 1."""
    column = np.asarray(rows, dtype=np.float64)
    pairs = np.stack([column, np.ones_like(column)], axis=1)
    return Metric(pairs, lambda sums: 100 * metrics.mean(sums[0], sums[1]), signature)


def _count(references: References) -> str:
    """References per row as sacrebleu's signatures state it."""
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"


# --- SQuAD -----------------------------------------------------------------------------------------------------------


def normalized(text: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no a, an, the, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _exact_match(predictions: Texts, references: References, script: Script) -> Metric:
    """The share of predictions equal to a reference after normalisation (Rajpurkar et al. 2016, section 6.1)."""
    hits = [
        any(normalized(prediction) == normalized(text) for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return _average(hits, f"nrefs:{_count(references)}|norm:squad")


def _f1(predictions: Texts, references: References, script: Script) -> Metric:
    """F1 of bags of words (Rajpurkar et al. 2016, section 6.1), of characters in scripts without spaces.

    The best reference of each row counts.
    """
    split = str.split if script.spaced else CHARACTER.findall
    best = [
        max(_overlap(split(normalized(prediction)), split(normalized(text))) for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return _average(best, f"nrefs:{_count(references)}|norm:squad|unit:{'word' if script.spaced else 'character'}")


def _overlap(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)  # as in SQuAD 2.0 (Rajpurkar et al. 2018)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))
