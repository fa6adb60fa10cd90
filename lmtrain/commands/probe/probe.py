"""`lmtrain probe`, from top to bottom: encoders that are there, judged by how well their states tell labels apart.

The encoder stays as it is, and a multinomial logistic regression on top is all that is learnt: what it gets right, the
states already held (Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016). Or,
with --fine-tune, encoder and a linear layer are trained together, as they would be in use.
"""

import time
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from lmtrain import __version__
from lmtrain.commands.probe import encoder as encoders
from lmtrain.commands.probe import entities, labels
from lmtrain.commands.probe.classifier import fine_tune, train_on_frozen
from lmtrain.commands.probe.encoder import Encoder, Ids
from lmtrain.commands.probe.figures import figures
from lmtrain.commands.probe.labels import Labels
from lmtrain.data.corpus import Splits
from lmtrain.data.ledger import extend_fingerprint, total
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment
from lmtrain.runtime.memory import peak_memory, release_memory


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


def probe(request: Any, sides: Splits, console: Console) -> dict[str, Any]:
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


def _tell(task: Task, sides: Splits, request: Any, console: Console) -> int:
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
            f"no word is tagged {entities.OUTSIDE}, so the tags are not those of entities: they are judged one by one"
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
            "fingerprint": extend_fingerprint("", rows.contents())}  # fmt: skip


# --- one encoder -----------------------------------------------------------------------------------------------------
def _judge(model: Any, section: Any, task: Task, console: Console) -> Finding:
    started = time.monotonic()
    encoder = encoders.load(model, section.max_length, console)
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
    learn = fine_tune if section.fine_tune else train_on_frozen
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
        "intervals": bootstrap.intervals(metrics) if len(task.held_out) > 1 else {},
        "signatures": {name: metric.signature for name, metric in metrics.items()},
        "rows_truncated": {"train": train.truncated, "eval": held.truncated},
        "seconds": time.monotonic() - started,
    }
    del encoder
    release_memory()
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
    comparisons = bootstrap.compare(finding.metrics, first.metrics)
    return {name: asdict(comparison) for name, comparison in comparisons.items()}
