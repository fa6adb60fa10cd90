"""`lmtrain eval`, from top to bottom: a model that is there, scored on data."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import set_seed

from lmtrain import resampling
from lmtrain.batching import count_trained, longest_first, padding_fraction
from lmtrain.console import Console
from lmtrain.dataset import Limits
from lmtrain.errors import InputError
from lmtrain.evaluate import Evaluation, Scores, figures_of, likelihood_metrics, prepare
from lmtrain.machine import environment, give_back_memory, part, peak_memory, precision
from lmtrain.model import load_network, positions
from lmtrain.objectives import OBJECTIVES
from lmtrain.pretrained import load_config, load_tokenizer
from lmtrain.report import write_lines
from lmtrain.resampling import Metric
from lmtrain.sources import Rows


def score(recipe: Any, rows: Rows, against: str | None, console: Console) -> dict[str, Any]:
    """Score the recipe's model on `rows` and return what `--json` prints.

    `against` names the predictions.jsonl of another model on the same rows, to be compared with. Raises an
    LmtrainError for whatever the user can put right.
    """
    started = time.monotonic()
    others = read_predictions(against) if against else []
    config = load_config(recipe.model, recipe.objective)
    floats = precision(recipe.train.precision, config.model_type)
    accelerator = Accelerator(
        mixed_precision="no" if floats == "fp32" else floats, cpu=not torch.accelerator.is_available()
    )
    console.main_process = accelerator.is_main_process
    set_seed(recipe.train.seed)
    objective = OBJECTIVES[recipe.objective]
    with console.working("loading tokenizer and model"):
        tokenizer, told = load_tokenizer(recipe.model, rows.kind)
        network, notes = load_network(recipe.model, config, tokenizer, objective.auto_model)
    limits = Limits(positions(network), {})
    with console.working("tokenising the data"):
        examples = objective.encode(rows, tokenizer, recipe.data, limits, True)
    collate, loss = objective.fit(network, examples, tokenizer, recipe.data, recipe.train.seed, limits)
    count_trained(examples, collate, None)
    ledger = examples.ledger
    if not ledger.tokens_trained:
        raise InputError("--data: not one token of it would be predicted: the texts are too short")
    batches = longest_first(examples.lengths, recipe.eval.batch_size)
    ledger.padding_fraction = padding_fraction(examples.lengths_by_column(), batches)
    for line in [*rows.notes, *told, *notes]:
        console.note(line)
    console.ledger({"eval": ledger.document()})
    if cut := ledger.rows_truncated:
        lengths = " and ".join(f"--{name.replace('_', '-')} {length}" for name, length in limits.resolved.items())
        console.warn(f"{cut:,} of {ledger.rows_used:,} rows are cut at {lengths}; ask for more if the model can")

    if against and len(others) != len(examples):
        raise InputError(f"--against {against}: {len(others):,} rows, here are {len(examples):,}")
    evaluation = prepare(recipe, objective, examples, tokenizer, collate, loss, limits, floats, console)
    give_back_memory()
    scores = evaluation.run(network.to(accelerator.device), accelerator)
    if not math.isfinite(scores.figures["eval_loss"]):
        raise InputError(f"{recipe.model.name}: its loss on these data is not a finite number; the model is broken")
    for line in scores.notes:
        console.warn(line)
    if recipe.eval.samples and console.main_process and not console.quiet:
        console.samples(evaluation.samples(network, recipe.eval.samples))
    if console.main_process and recipe.eval.predictions:
        write_lines(Path(recipe.eval.predictions), evaluation.records(scores))
    results = {
        "objective": recipe.objective,
        "model": recipe.model.name,
        "status": "completed",
        **figures_of(scores),
        **({"against": compared(evaluation, scores, others, against)} if against else {}),
        "eval": {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        "data": {"kind": rows.kind, "eval": ledger.document()},
        "gates": [],
        "environment": environment(accelerator.num_processes, recipe.train.seed),
    }
    part()
    return results


# --- another model on the same rows -----------------------------------------------------------------------------------


def read_predictions(path: str) -> list[dict[str, Any]]:
    """The rows of a predictions.jsonl. Raises InputError."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
    except OSError as error:
        raise InputError(f"--against {path}: {error.strerror}") from None
    except ValueError:
        rows = []
    if not rows or not all(
        isinstance(row, dict) and {"source", "references", "nll", "tokens"} <= set(row) for row in rows
    ):
        raise InputError(f"--against {path}: not what --predictions writes")
    return rows


def compared(
    evaluation: Evaluation, scores: Scores, others: list[dict[str, Any]], path: str | None
) -> dict[str, dict[str, Any]]:
    """Metric -> both values, their difference, its 95 % interval and its p-value, by paired bootstrap.

    Raises InputError where the other model was not scored on the same rows.
    """
    own = list(evaluation.records(scores))
    for number, (mine, other) in enumerate(zip(own, others, strict=True), 1):
        if (mine["source"], mine["references"]) != (other["source"], other["references"]):
            raise InputError(f"--against {path}, line {number}: another row than here; both models have to be scored "
                             "on the same data with the same settings")  # fmt: skip
    comparisons = resampling.compare(scores.metrics, _metrics_of(others, evaluation, scores))
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


def _metrics_of(rows: list[dict[str, Any]], evaluation: Evaluation, scores: Scores) -> dict[str, Metric]:
    """The metrics of another model from the rows of its predictions.jsonl."""
    columns = {n: np.array([row[n] for row in rows], dtype=np.float64) for n in scores.columns if n in rows[0]}
    made = likelihood_metrics(columns, evaluation.objective, evaluation.signature)
    return made | evaluation.judge.score([row["prediction"] for row in rows]) if evaluation.judge else made
