"""`lmtrain eval`: score a saved model on data."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lmtrain.config.recipe import Recipe
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.evaluation.building import build_evaluator
from lmtrain.evaluation.comparison import compare
from lmtrain.evaluation.predictions import read_predictions
from lmtrain.evaluation.records import records
from lmtrain.evaluation.scores import metrics_document
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.loss import evaluating
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.sampler import count_trained, longest_first, padding_fraction
from lmtrain.runs.saved_run import check_labels
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment, leave_process_group, precision
from lmtrain.runtime.files import write_lines
from lmtrain.runtime.invocation import origin
from lmtrain.runtime.memory import peak_memory, release_memory
from lmtrain.training.assembly import fit_scoring
from lmtrain.training.data_report import cut_warnings, set_counts
from lmtrain.training.datasets import check_text, why_untrained
from lmtrain.training.loaded_model import load_model


def evaluate(recipe: Recipe, rows: Rows, against: str | None, console: Console) -> dict[str, Any]:
    """Score the recipe's model on `rows` and return what `--json` prints.

    `against` names the predictions.jsonl of another model on the same rows, to be compared with. Raises an
    LmtrainError for whatever the user can put right.
    """
    started = time.monotonic()
    others = read_predictions(against, "--against ") if against else []
    config = load_config(recipe.model, recipe.objective)
    objective = OBJECTIVES[recipe.objective].fitted(config, rows.kind, check_labels(recipe.model.name, rows.kind, []))
    dtype = precision(recipe.train.precision, config.model_type)
    accelerator = Accelerator(
        mixed_precision="no" if dtype == "fp32" else dtype, cpu=not torch.accelerator.is_available()
    )
    console.main_process = accelerator.is_main_process
    model = load_model(recipe, config, objective, None, console, kind=rows.kind)
    with console.working("tokenising the data"):
        examples = objective.encode(rows, model.tokenizer, recipe.data, model.limits, True)
    collator = objective.collator(model.tokenizer, recipe.data, recipe.train.seed)
    collator, loss = fit_scoring(objective, model.network, examples, collator)
    count_trained(examples, collator, None)
    for line in [*rows.notes, *model.notes]:
        console.note(line)
    text_warnings = check_text(objective, model.tokenizer, rows, examples, "--data")
    for line in [*rows.warnings, *examples.warnings, *model.warnings, *text_warnings]:
        console.warn(line)
    ledger, sets = _report_ledger(examples, recipe, console), set_counts(examples)
    scored = int(examples.units[-1]) + 1
    if against and len(others) != scored:
        raise InputError(f"--against {against}: {len(others):,} rows, here are {scored:,}")

    evaluator = build_evaluator(recipe, objective, examples, model.tokenizer, collator, loss, dtype, console)
    release_memory()
    scores = evaluator.run(model.network.to(accelerator.device), accelerator)
    if not math.isfinite(scores.values["eval_loss"]):
        raise InputError(f"{recipe.model.name}: its loss on these data is not a finite number; the model is broken")
    for line in scores.notes:
        console.warn(line)
    if recipe.eval.samples and console.main_process and not console.quiet:
        with evaluating(model.network):
            console.samples(evaluator.samples(model.network, recipe.eval.samples))
    if console.main_process and recipe.eval.predictions:
        write_lines(Path(recipe.eval.predictions), records(evaluator, scores), "--predictions")
    results = {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "status": "completed",
        **metrics_document(scores),
        **({"against": compare(evaluator, scores, others, against)} if against else {}),
        **({"predictions": recipe.eval.predictions} if recipe.eval.predictions else {}),
        "eval": {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        "data": {"kind": rows.kind, "eval": ledger, **({"evaluation_sets": sets} if sets else {})},
        "gates": [],
        **origin(),
        "environment": environment(accelerator.num_processes, recipe.train.seed),
    }
    leave_process_group()
    return results


def _report_ledger(examples: Examples, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Show the ledger and return it. Raises InputError if no token would be predicted."""
    ledger = examples.ledger
    if not ledger.tokens_trained:
        raise InputError(f"--data: no token of it would be predicted: {why_untrained(ledger)}")
    batches = longest_first(examples.lengths, recipe.eval.batch_size)
    ledger.padding_fraction = padding_fraction(examples.lengths_by_column(), batches)
    document: dict[str, Any] = ledger.document()
    console.ledger({"eval": document})
    for line in cut_warnings(examples.kind, {"eval": document}, examples.limits):
        console.warn(line)
    return document
