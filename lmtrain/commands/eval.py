"""`lmtrain eval`, from top to bottom: a model that is there, scored on data."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import set_seed

from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.evaluation.comparison import compared, read_predictions
from lmtrain.evaluation.evaluator import build_evaluator
from lmtrain.evaluation.scores import metrics_document
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network, positions
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.sampler import count_trained, longest_first, padding_fraction
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment, leave_process_group, precision
from lmtrain.runtime.files import write_lines
from lmtrain.runtime.memory import peak_memory, release_memory


def evaluate(recipe: Any, rows: Rows, against: str | None, console: Console) -> dict[str, Any]:
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
    evaluation = build_evaluator(recipe, objective, examples, tokenizer, collate, loss, limits, floats, console)
    release_memory()
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
        **metrics_document(scores),
        **({"against": compared(evaluation, scores, others, against)} if against else {}),
        "eval": {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        "data": {"kind": rows.kind, "eval": ledger.document()},
        "gates": [],
        "environment": environment(accelerator.num_processes, recipe.train.seed),
    }
    leave_process_group()
    return results
