"""Metrics of generated text against references: offline, in every script, each with the signature of how it was made."""

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
from lmtrain.errors import InputError, UsageError, suggestion
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.scripts import CHARACTER, Script, detect_script

Texts = Sequence[str]
References = Sequence[Sequence[str]]

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def score(
    predictions: Texts, references: References, script: Script, names: Collection[str] = metrics.TEXT_METRICS
) -> dict[str, Metric]:
    """The metrics `names`; `references[i]` are all the good answers of row i, at least one."""
    rouges = [name for name in ROUGES if name in names]
    makers: dict[str, Callable[[Texts, References, Script], Metric]] = {
        "bleu": _bleu,
        "chrf": partial(_sacrebleu, CHRF()),
        "chrfpp": partial(_sacrebleu, CHRF(word_order=2)),
        "ter": _ter,
        "exact_match": _exact_match,
        "f1": _f1,
    }
    made = {name: make(predictions, references, script) for name, make in makers.items() if name in names}
    if rouges:
        made |= _rouge(rouges, predictions, references, script)
    return {name: made[name] for name in metrics.TEXT_METRICS if name in made}


# --- sacrebleu -------------------------------------------------------------------------------------------------------
def _sacrebleu(metric: Any, predictions: Texts, references: References, script: Script, most: float = 100.0) -> Metric:
    """One of sacrebleu's metrics by its own statistics of rows; `most` cuts off what rounding puts above the best."""
    streams = [list(stream) for stream in zip_longest(*references)]  # None where a row has fewer references
    statistics = metric._extract_corpus_statistics(list(predictions), streams)
    return Metric(
        np.array(statistics, dtype=np.float64),
        lambda sums: min(metric._compute_score_from_stats(sums.tolist()).score, most),
        str(metric.get_signature()),
    )


def _bleu(predictions: Texts, references: References, script: Script) -> Metric:
    """BLEU; of references that are all shorter than four words, of the n-grams that there are (eff:yes)."""
    tokenized = BLEU(tokenize=script.bleu, force=True)
    longest = max(len(tokenized._preprocess_segment(text).split()) for texts in references for text in texts)
    return _sacrebleu(
        BLEU(tokenize=script.bleu, force=True, effective_order=longest < 4), predictions, references, script
    )


def _ter(predictions: Texts, references: References, script: Script) -> Metric:
    """TER; in scripts without spaces, where a sentence would be one word, over characters."""
    if script.spaced:
        return _sacrebleu(TER(), predictions, references, script, inf)
    if script.name in ("Chinese", "Japanese"):
        return _sacrebleu(TER(normalized=True, asian_support=True), predictions, references, script, inf)
    apart = [" ".join(text.replace(" ", "")) for text in predictions]
    references = [[" ".join(text.replace(" ", "")) for text in texts] for texts in references]
    made = _sacrebleu(TER(), apart, references, script, inf)
    return Metric(made.statistics, made.score, f"{made.signature}|unit:character")


# --- ROUGE -----------------------------------------------------------------------------------------------------------
class _Tokenizer:
    """For rouge_score, which asks for an object."""

    def __init__(self, split: Callable[[str], list[str]]):
        self.tokenize = split


def _rouge(names: list[str], predictions: Texts, references: References, script: Script) -> dict[str, Metric]:
    """F-measures of ROUGE by rouge_score, the best reference of each row, averaged over the rows."""
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    own = script.split and _Tokenizer(script.split)
    scorer = RougeScorer(names, tokenizer=own)
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        scores = scorer.score_multi(texts, prediction)
        same = own is not None and any(_same(own.tokenize, prediction, text) for text in texts)
        # A text too short for two words in a row has no ROUGE-2; if it is the very same one, it is right.
        rows.append([1.0 if same else scores[name].fmeasure for name in names])
    nrefs = _count(references)
    return {
        name: _average(
            column, f"nrefs:{nrefs}|unit:{script.units}|case:lc|stem:no|rouge-score:{version('rouge-score')}"
        )
        for name, column in zip(names, np.array(rows).T, strict=True)
    }


def _same(tokenize: Callable[[str], list[str]], prediction: str, text: str) -> bool:
    units = tokenize(text)
    return units == tokenize(prediction) if units else prediction.strip() == text.strip()


def _average(rows: Any, signature: str) -> Metric:
    """The mean of one number between 0 and 1 a row, in per cent."""
    column = np.asarray(rows, dtype=np.float64)
    pairs = np.stack([column, np.ones_like(column)], axis=1)
    return Metric(pairs, lambda sums: 100 * metrics.mean(sums[0], sums[1]), signature)


def _count(references: References) -> str:
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"


# --- SQuAD -----------------------------------------------------------------------------------------------------------
def normalized(text: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no a, an, the, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _exact_match(predictions: Texts, references: References, script: Script) -> Metric:
    hits = [
        any(normalized(prediction) == normalized(text) for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return _average(hits, f"nrefs:{_count(references)}|norm:squad")


def _f1(predictions: Texts, references: References, script: Script) -> Metric:
    """F1 of the bags of words, or where no spaces part them of characters; the best reference of each row."""
    split = str.split if script.spaced else CHARACTER.findall
    best = [
        max(_overlap(split(normalized(prediction)), split(normalized(text))) for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return _average(best, f"nrefs:{_count(references)}|norm:squad|unit:{'word' if script.spaced else 'character'}")


def _overlap(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)  # as SQuAD 2.0 does, Rajpurkar et al. 2018
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))


# --- anything else ---------------------------------------------------------------------------------------------------
def load(name: str) -> Any:
    """A metric of evaluate: a hub name, or the path of a module. Raises UsageError, InputError."""
    is_path = name.endswith(".py") or "/" in name
    if is_path and not Path(name).exists():
        raise UsageError(f"--metric {name}: no such file{suggestion(name, metrics.TEXT_METRICS)}")
    import evaluate

    try:
        return evaluate.load(str(Path(name).resolve()) if is_path else name, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError) as error:
        hint = suggestion(name, metrics.TEXT_METRICS) or f"; offline there are {', '.join(metrics.TEXT_METRICS)}"
        raise UsageError(f"--metric {name}: not one of ours, and the hub gives no such metric{hint}") from error
    except Exception as error:  # a module is a program of somebody's
        raise InputError(f"--metric {name}: cannot be loaded: {type(error).__name__}: {error}") from error


def _compute(name: str, metric: Any, predictions: Texts, references: References) -> dict[str, float]:
    """The numbers that a metric of evaluate gives. Raises InputError where it refuses texts."""
    single = all(len(texts) == 1 for texts in references)
    targets: Any = [texts[0] for texts in references] if single else [list(texts) for texts in references]
    try:
        result = metric.compute(predictions=list(predictions), references=targets)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--metric {name}: refuses these texts: {reason}") from error
    return {key: float(value) for key, value in result.items() if isinstance(value, int | float | np.number)}


# --- all of it -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TextScorer:
    """What texts are held against: `references[i]` are all the good answers of row i, at least one."""

    references: References
    script: Script
    names: tuple[str, ...]
    others: dict[str, Any]
    """Metrics of evaluate, by the name that was asked for."""

    def score(self, predictions: Texts) -> dict[str, Metric]:
        """Our metrics."""
        return score(predictions, self.references, self.script, self.names)

    def custom_values(self, predictions: Texts, taken: Collection[str]) -> dict[str, tuple[float, str]]:
        """(value, signature) of every number that the other metrics give; a name that is `taken` gets theirs in front."""
        found: dict[str, tuple[float, str]] = {}
        for name, metric in self.others.items():
            for key, value in _compute(name, metric, predictions, self.references).items():
                clash = key in taken or key in found or key == "loss"  # which would be eval_loss in a log
                found[f"{Path(name).stem}_{key}" if clash else key] = value, f"evaluate:{name}"
        return found


def build_text_scorer(references: References, section: PairEval) -> TextScorer:
    """The judge that a recipe's eval section asks for.

    What is named and none of ours is loaded through evaluate. Raises UsageError, InputError.
    """
    script = detect_script((t for texts in references for t in texts), section.bleu_tokenize, section.rouge_tokenize)
    others = {name: load(name) for name in section.metric if name not in metrics.TEXT_METRICS}
    return TextScorer(references, script, section.text_metrics, others)
