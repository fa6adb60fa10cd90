"""`lmtrain probe`, from top to bottom: train a classifier on the states of each encoder and score its predictions.

The encoder is frozen and a multinomial logistic regression is fitted, so what it predicts correctly the states already
encode (Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016). With --fine-tune
the encoder and a linear layer are trained together, as in most applications.
"""

import time
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from lmtrain.commands.probe.classifier import fine_tune, train_on_frozen
from lmtrain.commands.probe.encoder import EncodedRows, Encoder, load
from lmtrain.commands.probe.labels import baseline, classes_of, has_entity_tags, labels_of, most_frequent
from lmtrain.config.eval import Probing
from lmtrain.config.model import Model
from lmtrain.config.recipe import ProbeRequest
from lmtrain.data.corpus import Splits
from lmtrain.data.labels import Labels
from lmtrain.data.ledger import extend_fingerprint, total
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.evaluation import bootstrap
from lmtrain.evaluation.baseline import Setup, check_baseline
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.entities import OUTSIDE
from lmtrain.evaluation.label_metrics import label_metrics
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import environment
from lmtrain.runtime.memory import peak_memory, release_memory
from lmtrain.version import __version__


@dataclass(frozen=True)
class Task:
    """The labelled rows that every encoder is probed on."""

    train: Rows
    held_out: Rows
    classes: list[str]
    """The distinct training labels, sorted; a class index counts in this list."""
    entities: bool
    """Whether the labels are tags of entities."""

    @property
    def tagged(self) -> bool:
        return self.train.kind == "tagged"

    @property
    def scheme(self) -> str:
        return "entities" if self.entities else "classes"

    @property
    def label_word(self) -> str:
        return "tags" if self.tagged else "labels"

    def encode(self, encoder: Encoder) -> tuple[EncodedRows, EncodedRows]:
        """The tokenized training and evaluation rows."""
        encode = encoder.encode_words if self.tagged else encoder.encode_texts
        train, held_out = ([value for value, _ in rows.values] for rows in (self.train, self.held_out))
        return encode(train), encode(held_out)

    def targets(self, encoded: EncodedRows) -> np.ndarray:
        """[vectors] class index of each training vector."""
        index_of = {label: index for index, label in enumerate(self.classes)}
        rows = [np.array([index_of[label] for label in labels]) for labels in labels_of(self.train)]
        if encoded.first_tokens is not None:
            rows = [row[tokens >= 0] for row, tokens in zip(rows, encoded.first_tokens, strict=True)]
        return np.concatenate(rows)

    def to_labels(self, predictions: np.ndarray, encoded: EncodedRows) -> Labels:
        """The labels of predicted classes [vectors]. A word without a vector gets the most frequent training tag."""
        if encoded.first_tokens is None:
            return [[self.classes[prediction]] for prediction in predictions]
        default = self.classes.index(most_frequent(chain.from_iterable(labels_of(self.train))))
        labels = []
        for row, tokens in enumerate(encoded.first_tokens):
            classes = np.full(len(tokens), default)
            classes[tokens >= 0] = predictions[encoded.offsets[row] : encoded.offsets[row + 1]]
            labels.append([self.classes[index] for index in classes])
        return labels


@dataclass(frozen=True)
class EncoderScores:
    """The metrics of one encoder, and its entry in the results."""

    model: str
    metrics: dict[str, Metric]
    document: dict[str, Any]


def probe(request: ProbeRequest, splits: Splits, console: Console) -> dict[str, Any]:
    """Probe every encoder and return what `--json` prints. Raises an LmtrainError for whatever the user can fix."""
    started = time.monotonic()
    assert splits.held_out is not None
    task = Task(splits.train, splits.held_out, classes_of(splits.train), has_entity_tags(splits.train))
    setup = Setup(extend_fingerprint("", task.held_out.contents()), {})
    for line in check_baseline(request.gates, "probe", setup, request.run.allow_drift):
        console.warn(line)
    _report_data(task, splits, request, console)
    unknown = _warn_of_unknown_labels(task, console)
    method, predictions = baseline(task.train, task.held_out)
    baseline_metrics = label_metrics(labels_of(task.held_out), predictions, "", task.scheme)
    scores = [_probe_encoder(model, request.probe, task, console) for model in request.encoders()]
    models = [scores[0].document, *({**own.document, "against": _compare(own, scores[0])} for own in scores[1:])]
    last = models[-1]
    return {
        "objective": "probe",
        "model": last["model"],
        "status": "completed",
        **{key: value for key, value in last.items() if key in ("metrics", "intervals", "signatures", "against")},
        "baseline": {"method": method, "metrics": {name: metric.value for name, metric in baseline_metrics.items()}},
        "models": models,
        "eval": {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        "data": {
            "kind": splits.train.kind,
            "labels": len(task.classes),
            "train": _ledger_document(splits.train),
            "eval": {**_ledger_document(task.held_out), "unknown_labels": unknown},
            "shared_rows": splits.shared_rows,
        },
        "gates": [],
        "environment": environment(1, request.probe.seed),
    }


def _report_data(task: Task, splits: Splits, request: ProbeRequest, console: Console) -> None:
    """Say how many rows are used and which are left out, and warn of rows in both splits."""
    for note in [*splits.train.notes, *(task.held_out.notes if request.data.eval else [])]:
        console.note(note)
    console.note(
        f"{len(task.train):,} training rows, {len(task.held_out):,} evaluation rows, "
        f"{len(task.classes):,} {task.label_word}"
    )
    for name, rows in (("training", splits.train), ("evaluation", task.held_out)):
        ledger = total(rows.ledgers)
        for fate, count in (("empty", ledger.rows_empty), ("bad", ledger.rows_bad)):
            if count:
                console.note(f"{count:,} {fate} rows of the {name} data are left out")
    if task.tagged and not task.entities:
        console.note(f"no word is tagged {OUTSIDE}, so the tags do not mark entities; each tag is scored by itself")
    for line in splits.warnings(request.data.on_leak):
        console.warn(line)


def _warn_of_unknown_labels(task: Task, console: Console) -> int:
    """Warn of evaluation labels that do not occur in training, and return how many there are."""
    known = set(task.classes)
    unknown = [label for label in chain.from_iterable(labels_of(task.held_out)) if label not in known]
    if unknown:
        names = sorted(set(unknown))
        shown = ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
        console.warn(
            f"{len(unknown):,} evaluation {task.label_word} ({shown}) do not occur in the training data; "
            "they count as wrong"
        )
    return len(unknown)


def _ledger_document(rows: Rows) -> dict[str, Any]:
    ledger = total(rows.ledgers)
    unused = {"rows_empty": ledger.rows_empty, "rows_bad": ledger.rows_bad, "rows_dropped": ledger.rows_dropped}
    used = len(rows)
    fingerprint = extend_fingerprint("", rows.contents())
    return {"rows_read": used + sum(unused.values()), **unused, "rows_used": used, "fingerprint": fingerprint}


# --- one encoder -----------------------------------------------------------------------------------------------------
def _probe_encoder(model: Model, section: Probing, task: Task, console: Console) -> EncoderScores:
    started = time.monotonic()
    encoder = load(model, section.max_length, console)
    for line in encoder.notes:
        console.note(line)
    with console.working("tokenizing the data"):
        train, held_out = task.encode(encoder)
    _warn_of_truncation(encoder, train, held_out, console)
    targets = task.targets(train)
    if not len(targets):
        raise InputError(f"--max-length {encoder.max_length}: no word of the training data is left; raise it")
    learn = fine_tune if section.fine_tune else train_on_frozen
    predictions, settings = learn(encoder, train, targets, held_out, len(task.classes), section, console)
    signature = _signature(section, task, encoder, settings)
    metrics = label_metrics(labels_of(task.held_out), task.to_labels(predictions, held_out), signature, task.scheme)
    document = {
        "model": model.name,
        "metrics": {name: metric.value for name, metric in metrics.items()},
        "intervals": bootstrap.intervals(metrics) if len(task.held_out) > 1 else {},
        "signatures": {name: metric.signature for name, metric in metrics.items()},
        "rows_truncated": {"train": train.truncated, "eval": held_out.truncated},
        "seconds": time.monotonic() - started,
    }
    del encoder
    release_memory()
    return EncoderScores(model.name, metrics, document)


def _signature(section: Probing, task: Task, encoder: Encoder, settings: dict[str, Any]) -> str:
    """How the metrics were computed; equal signatures are comparable."""
    parts = [
        f"lmtrain:{__version__}",
        "fine-tuned" if section.fine_tune else "frozen",
        "first token of a word" if task.tagged else "mean of tokens",
        f"max-length:{encoder.max_length}",
        *(f"{name}:{value}" for name, value in settings.items()),
    ]
    return "|".join(parts)


def _warn_of_truncation(encoder: Encoder, train: EncodedRows, held_out: EncodedRows, console: Console) -> None:
    """Warn of rows that are cut, and of words without a vector."""
    if cut := train.truncated + held_out.truncated:
        console.warn(
            f"{cut:,} rows are cut at --max-length {encoder.max_length}; raise it if the model has the positions"
        )
    missing = sum(int((tokens < 0).sum()) for rows in (train, held_out) for tokens in rows.first_tokens or ())
    if missing:
        console.warn(
            f"{missing:,} words are cut off or have no token; the most frequent training tag is predicted for them"
        )


def _compare(scores: EncoderScores, first: EncoderScores) -> dict[str, Any]:
    """Metric -> both values, their difference, its 95 % interval and its p-value, by paired bootstrap."""
    return {name: asdict(found) for name, found in bootstrap.compare(scores.metrics, first.metrics).items()}
