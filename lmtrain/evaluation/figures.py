"""The numbers in results.json besides the metrics, by their paths: what an `--assert` with a dotted name may use."""

from collections.abc import Iterable, Sequence

from lmtrain.config.recipe import ProbeRequest, Recipe
from lmtrain.data.ledger import COUNTS
from lmtrain.metrics import PROBE_METRICS, TEXT_METRICS, qualified

ROWS = ("rows_read", "rows_empty", "rows_bad", "rows_dropped", "rows_used")
LEDGER = (*COUNTS, "padding_fraction")
TRAIN = ("steps", "epochs", "tokens_seen", "tokens_trained", "tokens_per_second", "seconds", "peak_memory_bytes")
LOSSES = ("first_loss", "last_loss")
COMPARISON = ("value", "other", "difference", "p_value")


def of_training(recipe: Recipe) -> list[str]:
    """The figures in the results of a training run."""
    found = [*_in("train", TRAIN), *_in("data.train", LEDGER)]
    if recipe.train.max_steps != 0:
        found += _in("train", LOSSES)
    if not recipe.data.streaming:
        found += _in("data", ["duplicate_rows", *(["shared_rows"] if recipe.evaluates else [])])
    if recipe.evaluates:
        # Nothing is generated before the first step.
        first = (name for name in recipe.eval.metric_names if name not in TEXT_METRICS)
        found += [*_of_evaluation(recipe), *_in("initial_metrics", _of_sets(recipe, [*first]))]
    return [*found, *_ENVIRONMENT]


def of_evaluation(recipe: Recipe, against: bool) -> list[str]:
    """The figures in the results of `lmtrain eval`."""
    found = [*_in("eval", _COST), *_of_evaluation(recipe), *_ENVIRONMENT]
    return found + _comparisons(_of_sets(recipe, recipe.eval.metric_names)) if against else found


def of_probe(request: ProbeRequest) -> list[str]:
    """The figures in the results of `lmtrain probe`."""
    data = [*_in("data", ["labels", "shared_rows"]), *_in("data.train", ROWS), *_in("data.eval", ROWS)]
    found = [*data, "data.eval.unknown_labels", *_in("baseline.metrics", PROBE_METRICS), *_in("eval", _COST)]
    return [*found, *(_comparisons(PROBE_METRICS) if len(request.model.name) > 1 else []), *_ENVIRONMENT]


def _of_evaluation(recipe: Recipe) -> list[str]:
    of_sets = [name for name in _of_sets(recipe, recipe.eval.metric_names) if "." in name]
    generation = _in("generation", ["hit_cap", "num_beams", "max_new_tokens"]) if recipe.eval.generation else []
    return [*of_sets, *_in("data.eval", LEDGER), *generation]


def _of_sets(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The metrics under their plain names, and under those of each named set."""
    return [*names, *(qualified(own, name) for own in recipe.data.eval_sets for name in names)]


def _comparisons(names: Iterable[str]) -> list[str]:
    return [path for name in names for path in _in(f"against.{name}", COMPARISON)]


def _in(section: str, names: Iterable[str]) -> list[str]:
    return [f"{section}.{name}" for name in names]


_COST = ("seconds", "peak_memory_bytes")
_ENVIRONMENT = _in("environment", ["processes", "seed"])
