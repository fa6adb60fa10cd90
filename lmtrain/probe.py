"""`lmtrain probe`, from top to bottom: encoders that are there, judged by how well their states tell labels apart.

The encoder stays as it is, and a multinomial logistic regression on top is all that is learnt: what it gets right, the
states already held (Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016). Or,
with --fine-tune, encoder and a linear layer are trained together, as they would be in use.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import set_seed

from lmtrain import __version__, features, labels, resampling, tagging
from lmtrain.console import Console
from lmtrain.corpus import Sides
from lmtrain.errors import InputError
from lmtrain.features import Encoder, Ids
from lmtrain.labels import Labels
from lmtrain.ledger import chained, total
from lmtrain.machine import environment, give_back_memory, peak_memory
from lmtrain.resampling import Metric
from lmtrain.sources import Rows

GRADIENT = 1e-5
"""Where no derivative of the mean loss is larger, the regression has converged."""
ROUNDS, STEPS = 100, 10
"""Of L-BFGS: rounds of so many steps at most."""
ROUNDING = 1e-6
"""Relative: smaller differences between features in float32 say nothing."""
WARMUP = 0.1
"""The share of fine-tuning's steps in which the learning rate rises."""


@dataclass(frozen=True)
class Task:
    """What the encoders are judged by."""

    train: Rows
    held_out: Rows
    classes: list[str]
    """The labels of training, sorted."""
    entities: bool
    """Whether they mark entities."""

    @property
    def tagged(self) -> bool:
        return self.train.kind == "tagged"

    def encoded(self, encoder: Encoder) -> tuple[Ids, Ids]:
        """The ids of both sides."""
        train, held = ([value[0] for value in rows.values] for rows in (self.train, self.held_out))
        return encoder.encode(train, self.tagged), encoder.encode(held, self.tagged)

    def targets(self, encoded: Ids) -> np.ndarray:
        """[vectors] the class of each vector of training."""
        number = {label: index for index, label in enumerate(self.classes)}
        rows = [np.array([number[label] for label in own]) for own in labels.of(self.train)]
        if encoded.places is not None:
            rows = [own[places >= 0] for own, places in zip(rows, encoded.places, strict=True)]
        return np.concatenate(rows)

    def named(self, guesses: np.ndarray, encoded: Ids) -> Labels:
        """The labels of guessed classes [vectors]; a word without a vector has the commonest one of training."""
        if encoded.places is None:
            return [[self.classes[guess]] for guess in guesses]
        default = self.classes.index(labels.commonest(chain.from_iterable(labels.of(self.train))))
        named = []
        for row, places in enumerate(encoded.places):
            own = np.full(len(places), default)
            own[places >= 0] = guesses[encoded.offsets[row] : encoded.offsets[row + 1]]
            named.append([self.classes[guess] for guess in own])
        return named


@dataclass(frozen=True)
class Finding:
    """What became of one encoder."""

    model: str
    metrics: dict[str, Metric]
    document: dict[str, Any]


def probe(request: Any, sides: Sides, console: Console) -> dict[str, Any]:
    """Judge every encoder and return what `--json` prints. Raises an LmtrainError for whatever the user can put right."""
    started = time.monotonic()
    assert sides.held_out is not None
    task = Task(sides.train, sides.held_out, labels.classes(sides.train), labels.marks_entities(sides.train))
    unknown = _tell(task, sides, request, console)
    method, guesses = labels.baseline(task.train, task.held_out)
    baseline = figures(labels.of(task.held_out), guesses, task.entities, "")
    findings = [_judge(model, request.probe, task, console) for model in request.encoders()]
    first, last = findings[0], findings[-1]
    models = [
        {**finding.document, **({"against": _compared(finding, first)} if finding is not first else {})}
        for finding in findings
    ]
    return {
        "objective": "probe",
        "model": last.model,
        "status": "completed",
        **{key: value for key, value in models[-1].items() if key in ("metrics", "intervals", "signatures", "against")},
        "baseline": {"method": method, "metrics": {name: metric.value for name, metric in baseline.items()}},
        "models": models,
        "eval": {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        "data": {
            "kind": sides.train.kind,
            "labels": len(task.classes),
            "train": _ledger(sides.train),
            "eval": {**_ledger(task.held_out), "unknown_labels": unknown},
            "shared_rows": sides.shared_rows,
        },
        "gates": [],
        "environment": environment(1, request.probe.seed),
    }  # fmt: skip


def _tell(task: Task, sides: Sides, request: Any, console: Console) -> int:
    """Say what is in the data and what is not used of them; how many labels of the evaluation no training row has."""
    for note in [*sides.train.notes, *(task.held_out.notes if request.data.eval else [])]:
        console.note(note)
    what = "tags" if task.tagged else "labels"
    console.note(
        f"{len(task.train):,} rows to learn from, {len(task.held_out):,} to judge by, {len(task.classes):,} {what}"
    )
    for name, rows in (("training", sides.train), ("evaluation", task.held_out)):
        ledger = total(rows.ledgers)
        for fate, count in (("empty", ledger.rows_empty), ("bad", ledger.rows_bad)):
            if count:
                console.note(f"{count:,} {fate} rows of the {name} data are left out")
    if task.tagged and not task.entities:
        console.note(
            f"no word is tagged {tagging.OUTSIDE}, so the tags are not those of entities: they are judged one by one"
        )
    for line in sides.warnings(request.data.on_leak):
        console.warn(line)
    known = set(task.classes)
    strange = [label for label in chain.from_iterable(labels.of(task.held_out)) if label not in known]
    if strange:
        names = sorted(set(strange))
        shown = ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
        console.warn(
            f"{len(strange):,} of the evaluation's {what} ({shown}) are none of training's, and count as wrong"
        )
    return len(strange)


def _ledger(rows: Rows) -> dict[str, Any]:
    ledger = total(rows.ledgers)
    gone = {"rows_empty": ledger.rows_empty, "rows_bad": ledger.rows_bad, "rows_dropped": ledger.rows_dropped}
    used = len(rows)
    return {"rows_read": used + sum(gone.values()), **gone, "rows_used": used,
            "fingerprint": chained("", rows.contents())}  # fmt: skip


# --- one encoder -----------------------------------------------------------------------------------------------------


def _judge(model: Any, section: Any, task: Task, console: Console) -> Finding:
    started = time.monotonic()
    encoder = features.load(model, section.max_length, console)
    for line in encoder.notes:
        console.note(line)
    with console.working("tokenising the data"):
        train, held = task.encoded(encoder)
    _tell_losses(encoder, train, held, console)
    targets = task.targets(train)
    if not len(targets):
        raise InputError(
            f"--max-length {encoder.max_length}: no word of the training data is left of it; ask for more"
        )
    learn = _fine_tuned if section.fine_tune else _frozen
    guesses, told = learn(encoder, train, targets, held, len(task.classes), section, console)
    signature = "|".join([
        f"lmtrain:{__version__}", "fine-tuned" if section.fine_tune else "frozen",
        "first token of a word" if task.tagged else "mean of tokens", f"max-length:{encoder.max_length}",
        *(f"{name}:{value}" for name, value in told.items()),
    ])  # fmt: skip
    metrics = figures(labels.of(task.held_out), task.named(guesses, held), task.entities, signature)
    document = {
        "model": model.name,
        "metrics": {name: metric.value for name, metric in metrics.items()},
        "intervals": resampling.intervals(metrics) if len(task.held_out) > 1 else {},
        "signatures": {name: metric.signature for name, metric in metrics.items()},
        "rows_truncated": {"train": train.truncated, "eval": held.truncated},
        "seconds": time.monotonic() - started,
    }
    del encoder
    give_back_memory()
    return Finding(model.name, metrics, document)


def _tell_losses(encoder: Encoder, train: Ids, held: Ids, console: Console) -> None:
    """Say what of the data the encoder does not see."""
    if cut := train.truncated + held.truncated:
        console.warn(f"{cut:,} rows are cut at --max-length {encoder.max_length}; ask for more if the model can")
    blind = sum(int((own < 0).sum()) for side in (train, held) for own in side.places or ())
    if blind:
        console.warn(f"{blind:,} words are cut off or are nothing to the tokenizer; such words are guessed to have the "
                     "commonest tag")  # fmt: skip


def _compared(finding: Finding, first: Finding) -> dict[str, Any]:
    """Metric -> both values, their difference, its 95 % interval and its p-value, by paired bootstrap."""
    comparisons = resampling.compare(finding.metrics, first.metrics)
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


# --- what is learnt on top -------------------------------------------------------------------------------------------


def _frozen(
    encoder: Encoder, train: Ids, targets: np.ndarray, held: Ids, classes: int, section: Any, console: Console
) -> tuple[np.ndarray, dict[str, Any]]:
    """(the classes of the held-out vectors by a logistic regression on the frozen encoder's features, its settings)."""
    seen = encoder.features(train, section.batch_size, console, "encoding the training data")
    new = encoder.features(held, section.batch_size, console, "encoding the evaluation data")
    mean, deviation = seen.mean(0), seen.std(0)
    deviation[deviation <= ROUNDING * np.abs(seen).max(0)] = 1.0  # it does not vary, but for rounding
    for vectors in (seen, new):
        vectors -= mean
        vectors /= deviation
    weight, bias = regression(torch.from_numpy(seen), torch.from_numpy(targets), classes, section.l2, console)
    return (torch.from_numpy(new) @ weight + bias).argmax(1).numpy(), {"l2": section.l2}


def regression(
    vectors: torch.Tensor, targets: torch.Tensor, classes: int, l2: float, console: Console
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [d, classes], biases [classes]) of the multinomial logistic regression on `vectors` [n, d] float64.

    They minimise the mean negative log-likelihood + l2 / 2n · |weights|²; the biases are not held down. From zero by L-BFGS
    on all rows at once, so that nothing is left to chance.
    """
    weight = torch.zeros(vectors.shape[1], classes, dtype=vectors.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=vectors.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_grad=GRADIENT, tolerance_change=0.0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(vectors @ weight + bias, targets) + l2 / (2 * len(vectors)) * weight.square().sum()
        value.backward()
        return value

    for _ in console.track(range(ROUNDS), "fitting the regression"):
        optimizer.step(loss)  # type: ignore[arg-type]
        loss()
        if max(float(part.grad.abs().max()) for part in (weight, bias)) <= GRADIENT:  # type: ignore[union-attr]
            break
    else:
        console.warn(f"the regression has not converged in {ROUNDS * STEPS:,} steps; a larger --l2 makes it easier")
    return weight.detach(), bias.detach()


def _fine_tuned(
    encoder: Encoder, train: Ids, targets: np.ndarray, held: Ids, classes: int, section: Any, console: Console
) -> tuple[np.ndarray, dict[str, Any]]:
    """(the classes of the held-out vectors by encoder and linear layer, trained together, their settings)."""
    set_seed(section.seed)
    network = encoder.network.train()
    width = encoder.vectors(train.ids[:1], None).shape[1]
    head = torch.nn.Linear(width, classes).to(encoder.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate)
    orders = [
        np.random.default_rng((section.seed, epoch)).permutation(len(train.ids)) for epoch in range(section.epochs)
    ]
    batches = [batch for order in orders for batch in features.batches_of(order, section.batch_size)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, len(batches)))
    for rows in console.track(batches, "fine-tuning"):
        numbers = train.numbers(rows)
        if not len(numbers):
            continue
        wanted = torch.from_numpy(targets[numbers]).to(encoder.device)
        F.cross_entropy(head(encoder.vectors(*train.of(rows))), wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    new = encoder.features(held, section.batch_size, console, "encoding the evaluation data")
    weight, bias = (part.detach().double().cpu() for part in (head.weight, head.bias))
    guesses = (torch.from_numpy(new) @ weight.T + bias).argmax(1).numpy()
    settings = {
        "epochs": section.epochs,
        "lr": section.learning_rate,
        "batch": section.batch_size,
        "seed": section.seed,
    }
    return guesses, settings


def _share_of_rate(step: int, steps: int) -> float:
    """Of the peak learning rate: it rises, and falls to 0, in straight lines."""
    rise = WARMUP * steps
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / max(steps - rise, 1)


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(true: Labels, predicted: Labels, entities: bool, signature: str) -> dict[str, Metric]:
    """Accuracy, and the F1 of entities or the mean F1 of labels; as metrics by row, for intervals and comparisons."""
    right = np.array(
        [[sum(map(str.__eq__, *pair)), len(pair[0])] for pair in zip(true, predicted, strict=True)], float
    )
    made = {"accuracy": Metric(right, lambda sums: sums[0] / max(sums[1], 1), signature)}
    if not entities:
        return made | {"macro_f1": Metric(_by_label(true, predicted), _macro_f1, signature)}
    found = np.array([tagging.agreement(p, t) for t, p in zip(true, predicted, strict=True)], float)
    return made | {
        "entity_precision": Metric(found, lambda sums: sums[0] / max(sums[1], 1), signature),
        "entity_recall": Metric(found, lambda sums: sums[0] / max(sums[2], 1), signature),
        "entity_f1": Metric(found, lambda sums: 2 * sums[0] / max(sums[1] + sums[2], 1), signature),
    }


def _by_label(true: Labels, predicted: Labels) -> np.ndarray:
    """[rows, 2 · labels] of each label: how often it is right, and how often it is predicted or true."""
    number = {label: index for index, label in enumerate(sorted({*chain(*true), *chain(*predicted)}))}
    counts = np.zeros((len(true), 2, len(number)))
    for row, (theirs, ours) in enumerate(zip(true, predicted, strict=True)):
        for wanted, guess in zip(theirs, ours, strict=True):
            counts[row, 0, number[wanted]] += wanted == guess
            counts[row, 1, number[wanted]] += 1
            counts[row, 1, number[guess]] += 1
    return counts.reshape(len(true), -1)


def _macro_f1(sums: np.ndarray) -> float:
    """The mean over the labels that are true or predicted of 2 · right / (predicted + true)."""
    right, either = sums.reshape(2, -1)
    there = either > 0
    return float(np.mean(2 * right[there] / either[there]))


# --- what is shown ---------------------------------------------------------------------------------------------------


def table(results: dict[str, Any], shown: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the figures of all models, side by side, with their 95 % intervals; then the comparisons."""
    models, baseline = results["models"], results["baseline"]["metrics"]
    header = ["", "baseline", *shown]
    rows = [
        [name, f"{value:.4f}", *(_with_interval(model, name) for model in models)] for name, value in baseline.items()
    ]
    for name in baseline if len(models) > 1 else ():
        rows.append([f"{name} against", "", shown[0], *(_difference(model["against"][name]) for model in models[1:])])
    rows += [[gate["expression"], "", *[""] * (len(models) - 1), "holds" if gate["holds"] else "does not hold"]
             for gate in results["gates"]]  # fmt: skip
    return header, rows


def _with_interval(model: dict[str, Any], name: str) -> str:
    interval = model["intervals"].get(name)
    return f"{model['metrics'][name]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _difference(comparison: dict[str, Any]) -> str:
    low, high = comparison["interval"]
    return f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p = {comparison['p_value']:.3g}"
