"""The evaluator of a recipe."""

from dataclasses import replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from lmtrain import metrics
from lmtrain.config.assertions import name_of
from lmtrain.config.eval import ClassEval
from lmtrain.config.recipe import Recipe
from lmtrain.errors import UsageError
from lmtrain.evaluation.baseline import Setup, check_baseline
from lmtrain.evaluation.evaluation_set import evaluation_sets
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.label_metrics import SCHEMES
from lmtrain.evaluation.scores import by_name, signature
from lmtrain.modeling.label_loss import SpanLoss
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.tokenizer import vocabulary_hash
from lmtrain.objectives.generation import GenerationSettings
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing.batch import Collator
from lmtrain.preprocessing.dataset import Examples
from lmtrain.runtime.console import Console


def build_evaluator(
    recipe: Recipe,
    objective: Objective,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    collator: Collator,
    loss: TokenLoss,
    precision: str,
    console: Console,
) -> Evaluator:
    """Build the evaluator of a recipe.

    Raises UsageError, InputError for metrics that cannot be computed, and for a baseline that cannot be compared with.
    """
    section, limits = recipe.eval, examples.limits
    if "num_bytes" not in examples.columns:
        _refuse(recipe, "bits_per_byte", f"not computed for {examples.kind} rows with this tokenizer; use eval_loss")
    generation = GenerationSettings()
    if decoding := section.generation:
        # One token more than the longest target has: an output of that length still ends by itself.
        longest = min(limits["max_target_length"] + 1, limits.positions or 1 << 30)
        generation = GenerationSettings(
            decoding.num_beams,
            decoding.max_new_tokens or longest,
            decoding.length_penalty,
            decoding.no_repeat_ngram_size,
        )
    settings = objective.signature(recipe.data, examples.kind, recipe.train.seed)
    settings = {**settings, "tokenizer": vocabulary_hash(tokenizer)[:8]}
    signed = signature(limits.resolved, settings, precision)
    own = [name for name in section.metric_names if name not in metrics.TEXT_METRICS]
    sets = evaluation_sets(examples, section.generation)
    if isinstance(section, ClassEval) and isinstance(loss, SpanLoss):
        loss = replace(loss, longest_answer=section.max_answer_length)
    own_signatures = by_name({evaluation_set: dict.fromkeys(own, signed) for evaluation_set in sets})
    setup = Setup(examples.fingerprint or None, own_signatures)
    for line in check_baseline(recipe.gates, recipe.objective, setup, recipe.run.allow_drift):
        console.warn(line)
    evaluator = Evaluator(
        objective=objective,
        examples=examples,
        tokenizer=tokenizer,
        collator=collator,
        loss=loss,
        section=section,
        generation=generation,
        sets=sets,
        signature=signed,
        console=console,
    )
    if evaluator.scheme:
        for metric in dict.fromkeys(chain(*SCHEMES.values())):
            if metric not in SCHEMES[evaluator.scheme]:
                _refuse(
                    recipe, metric, f"not computed for these labels; there are {', '.join(SCHEMES[evaluator.scheme])}"
                )
    return evaluator


def _refuse(recipe: Recipe, metric: str, reason: str) -> None:
    """Raise UsageError if the recipe wants a metric that is not computed."""
    wanted = {"--best-metric": recipe.eval.best_metric} | {
        f"--assert {e}": name_of(e) for e in recipe.gates.assertions
    }
    for flag, name in wanted.items():
        if metrics.base_name(name) == metric:
            raise UsageError(f"{flag}: {metric} is {reason}")
