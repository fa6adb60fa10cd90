"""Token-exact evaluation: sums over rows that depend on neither batch size nor number of processes. No logits are kept."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from lmtrain.config.eval import Eval
from lmtrain.data.labels import Labels
from lmtrain.evaluation.evaluation_set import EvaluationSet
from lmtrain.evaluation.label_metrics import scheme_of
from lmtrain.evaluation.likelihood import RowSums
from lmtrain.evaluation.pseudo_perplexity import PseudoLikelihood
from lmtrain.evaluation.scores import Scores, SetScores
from lmtrain.modeling.loss import TokenLoss, evaluating
from lmtrain.objectives.generation import ROWS_AT_ONCE, GenerationSettings, generate_rows, generation_arguments
from lmtrain.objectives.objective import Objective
from lmtrain.objectives.samples import Sample
from lmtrain.preprocessing.batch import IGNORED, Collator
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.ragged import Ragged, row_offsets
from lmtrain.preprocessing.sampler import longest_first
from lmtrain.runtime import signals
from lmtrain.runtime.console import Console
from lmtrain.runtime.memory import in_halves

SUMS = ("nll", "tokens", "correct", "correct_top5", "bytes")
"""The sums that scoring a row gives, in the order of the columns that hold them."""


@dataclass(frozen=True)
class Evaluator:
    """Everything that a metric depends on, so that training and `lmtrain eval` compute the same values."""

    objective: Objective
    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    loss: TokenLoss
    section: Eval
    generation: GenerationSettings
    sets: dict[str, EvaluationSet]
    """By name; a single one, with an empty name, where the evaluation data have no names."""
    signature: str
    """How rows became tokens: the signature of the likelihood metrics."""
    console: Console

    def run(self, network: Any, accelerator: Accelerator, generate: bool = True) -> Scores:
        """Score all rows. Every process returns the same scores.

        `generate=False` skips generation and its metrics. A loss that is not finite is returned, not raised.
        Raises Stopped.
        """
        with evaluating(network), torch.no_grad(), accelerator.autocast():
            sums, predicted_tokens = self._likelihood(network, accelerator)
            if "pseudo_perplexity" in self.section.metric_names:
                sums |= self._pseudo_likelihood(network, accelerator)
            names = self.section.metric_names
            sums = {name: self._by_unit(column) for name, column in sums.items()}
            found = {name: own.likelihood(sums, names, self.signature) for name, own in self.sets.items()}
            outputs = None
            if self.scheme == "answers":
                outputs = self.objective.answers(self.examples, predicted_tokens)
                found = {name: found[name] | own.of_outputs(outputs) for name, own in self.sets.items()}
            elif self.scheme:
                true, predicted = self._labels(predicted_tokens)
                found = {
                    n: found[n] | own.of_labels(true, predicted, self.signature, self.scheme)
                    for n, own in self.sets.items()
                }
            scores = Scores({name: SetScores(own) for name, own in found.items()}, sums, predicted_tokens, outputs)
            return self._with_outputs(scores, network, accelerator) if generate and self.generates else scores

    def _by_unit(self, sums: np.ndarray) -> np.ndarray:
        """The sums of rows [rows], added up for what is scored together."""
        return np.bincount(self.examples.units, weights=sums)

    def _labels(self, predicted: Ragged) -> tuple[Labels, Labels]:
        """(the true labels of each row, those that were predicted)."""
        column, names = self.examples.columns["labels"], self.objective.names_of
        at = [column[row] != IGNORED for row in range(len(self.examples))]
        true = [names(column[row][scored]) for row, scored in enumerate(at)]
        return true, [names(predicted[row][: int(scored.sum())]) for row, scored in enumerate(at)]

    @property
    def scheme(self) -> str | None:
        """How predicted labels are compared with the true ones; None for a language model."""
        return scheme_of(self.examples.kind, self.objective.labels) if self.objective.labels else None

    @property
    def generates(self) -> bool:
        """Whether outputs are generated and compared with references."""
        return self.section.generation is not None

    def try_out(self, network: Any, accelerator: Accelerator) -> None:
        """Score the largest batch, and generate one batch of outputs where `run` would, to see that both work."""
        with evaluating(network), torch.no_grad(), accelerator.autocast():
            rows = longest_first(self.examples.lengths, self.section.batch_size)[0].tolist()
            self._score(network, rows, accelerator.device, *self._buffers())
            if self.generates:
                rows = self._longest_first()[:ROWS_AT_ONCE]
                list(generate_rows(network, self.tokenizer, self.examples, rows, self.generation))

    # --- likelihood

    def _likelihood(self, network: Any, accelerator: Accelerator) -> tuple[RowSums, Ragged]:
        """(sums by row in the order of the data, the most likely token at each supervised position of each row)."""
        batches = self._own_batches(accelerator)
        sums, predicted = self._buffers()
        with _agreeing(accelerator):
            for rows in self.console.track(batches, "scoring"):
                self._score(network, rows, accelerator.device, sums, predicted)
        if accelerator.num_processes > 1:
            own = [row for batch in batches for row in batch]
            for rows, values, tokens in gather_object([(own, sums[own], [predicted[row] for row in own])]):
                sums[rows] = values
                for row, ids in zip(rows, tokens, strict=True):
                    predicted[row][:] = ids
        by_name = dict(zip(SUMS, sums.T, strict=True))
        return {name: sum_ for name, sum_ in by_name.items() if name != "bytes" or sum_.any()}, predicted

    def _buffers(self) -> tuple[np.ndarray, Ragged]:
        """Zeros for the sums [rows, 5] float64 and for the predicted tokens of every row, int32.

        They are allocated before the first batch. Results kept batch by batch would lie between the buffers of the logits,
        whose memory could then not be used again, and memory would grow with the data.
        """
        truths = self.examples.columns.get("labels", self.examples.columns["input_ids"])
        offsets = row_offsets(self.loss.answers_per_row(truths.lengths))
        return np.zeros((len(self.examples), len(SUMS))), Ragged(np.zeros(offsets[-1], np.int32), offsets)

    def _score(self, network: Any, rows: list[int], device: torch.device, sums: np.ndarray, predicted: Ragged) -> None:
        """Score `rows` as one batch into the buffers; out of memory, as two halves. Raises Stopped."""
        results = in_halves(rows, lambda part: self._score_batch(network, part, device))
        for row, (values, ids) in zip(rows, results, strict=True):
            sums[row] = values
            predicted[row][: len(ids)] = ids

    def _score_batch(
        self, network: Any, rows: Sequence[int], device: torch.device
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(sums [5], predicted tokens [supervised positions]) of each row."""
        signals.check()
        contents = [self.examples[None, row] for row in rows]
        batch = self.collator(contents)
        scores = self.loss.score(network, {name: tensor.to(device) for name, tensor in batch.items()})
        sums = np.empty((len(rows), len(SUMS)))
        columns = (scores.nll, scores.tokens, scores.correct, scores.correct_top5)
        sums[:, :4] = torch.stack([column.cpu().double() for column in columns], dim=1)
        sums[:, 4] = [_scored_bytes(*row) for row in zip(contents, batch["labels"], strict=True)]
        return list(zip(sums, scores.predictions, strict=True))

    def _pseudo_likelihood(self, network: Any, accelerator: Accelerator) -> RowSums:
        likelihood = PseudoLikelihood(self.tokenizer, self.collator, self.loss, self.section.batch_size)
        own = [row for batch in self._own_batches(accelerator) for row in batch]
        parts = []
        with _agreeing(accelerator):
            for row in self.console.track(own, "masking each token"):
                ids = self.examples[None, row]["input_ids"]
                parts.append((row, *likelihood.score(network, ids, accelerator.device)))
        _, nll, tokens = zip(*sorted(_gathered(parts, accelerator)), strict=True)
        return {"pseudo_nll": np.array(nll, dtype=np.float64), "pseudo_tokens": np.array(tokens, dtype=np.float64)}

    def _own_batches(self, accelerator: Accelerator) -> list[list[int]]:
        """The batches of row numbers that this process scores."""
        batches = longest_first(self.examples.lengths, self.section.batch_size)
        return [batches[n].tolist() for n in range(accelerator.process_index, len(batches), accelerator.num_processes)]

    def _longest_first(self) -> list[int]:
        return [int(row) for row in np.argsort(-self.examples.lengths, kind="stable")]

    # --- generated text

    def _with_outputs(self, scores: Scores, network: Any, accelerator: Accelerator) -> Scores:
        """The scores with an output per row and the metrics of these outputs."""
        process = accelerator.process_index, accelerator.num_processes
        own: list[Any] = []
        with _agreeing(accelerator):
            own += generate_rows(
                network,
                self.tokenizer,
                self.examples,
                self._longest_first(),
                self.generation,
                process,
                lambda batches: self.console.track(batches, "generating"),
            )
        generated = dict(_gathered(own, accelerator))
        outputs = [generated[row].text for row in range(len(self.examples))]
        capped = sum(output.capped for output in generated.values()) / len(generated)
        found = {name: own.with_outputs(scores.sets[name], outputs) for name, own in self.sets.items()}
        return replace(
            scores,
            sets=found,
            outputs=outputs,
            notes=self._notes(found, capped),
            generation={**generation_arguments(network, self.tokenizer, self.generation), "hit_cap": capped},
        )

    def _notes(self, found: dict[str, SetScores], capped: float) -> tuple[str, ...]:
        """What to report about the outputs; `capped` is the share that reached the limit of tokens."""
        notes = []
        for name, own in self.sets.items():
            bleu = found[name].metrics.get("bleu")
            if bleu is None or own.text_scorer is None:
                continue
            about = [own.text_scorer.script.note] if own.text_scorer.script.note else []
            if "eff:yes" in bleu.signature:
                about.append("no reference has four words, so BLEU uses shorter n-grams only (eff:yes)")
            notes += [f"{name}: {line}" if name else line for line in about]
        if capped:
            limit = self.generation.max_new_tokens
            notes.append(f"{capped:.1%} of the outputs were cut off at {limit} tokens; --max-new-tokens allows more")
        return tuple(notes)

    def samples(self, network: Any, count: int) -> list[Sample]:
        """What the model, which is `evaluating`, writes for the first `count` rows of each set."""
        found = []
        for name, own in self.sets.items():
            rows = own.rows[:count].tolist()
            written = self.objective.sample(
                network, self.tokenizer, self.examples, rows, self.collator, self.generation
            )
            found += [{**({"set": name} if name else {}), **sample} for sample in written]
        return found


def _scored_bytes(content: dict[str, Any], labels: torch.Tensor) -> int:
    """UTF-8 bytes of the scored tokens of a row; 0 where they were not measured."""
    if "num_bytes" not in content:
        return 0
    sizes = content["num_bytes"]
    return int(sizes[(labels != IGNORED).numpy()[: len(sizes)]].sum())


def _agreeing(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Each process stops by itself in this block, and then all do. Raises Stopped."""

    def one_of_all(stopped: bool) -> bool:
        return bool(accelerator.reduce(torch.tensor(int(stopped), device=accelerator.device)) > 0)

    return signals.agreeing(one_of_all if accelerator.num_processes > 1 else bool)


def _gathered(parts: list[Any], accelerator: Accelerator) -> list[Any]:
    """The parts of all processes."""
    return gather_object(parts) if accelerator.num_processes > 1 else parts
