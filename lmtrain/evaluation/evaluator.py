"""Token-exact evaluation: sums over rows, whatever the batches and processes; no logits are kept."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from lmtrain import metrics
from lmtrain.config.eval import PairEval
from lmtrain.config.recipe import Recipe
from lmtrain.errors import UsageError
from lmtrain.evaluation import text_metrics
from lmtrain.evaluation.bootstrap import Metric
from lmtrain.evaluation.scores import Columns, Scores, likelihood_metrics, plain_number, signature
from lmtrain.evaluation.text_metrics import Judge
from lmtrain.modeling.loss import TokenLoss, evaluating
from lmtrain.objectives import generation
from lmtrain.objectives.generation import GenerationSettings
from lmtrain.objectives.objective import Objective
from lmtrain.objectives.samples import Sample
from lmtrain.preprocessing.batch import IGNORED, Collator
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.sampler import longest_first
from lmtrain.runtime import signals
from lmtrain.runtime.console import Console
from lmtrain.runtime.memory import free_device_memory, is_out_of_memory


@dataclass(frozen=True)
class Evaluator:
    """Everything that the figures depend on, so that training's own and any later evaluation are the same."""

    objective: Objective
    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    collate: Collator
    loss: TokenLoss
    asked: Any
    """The recipe's eval section."""
    settings: generation.GenerationSettings
    judge: Judge | None
    """Where outputs are generated and compared with references."""
    signature: str
    """How rows became tokens, for the figures made of likelihoods."""
    console: Console

    def run(self, network: Any, accelerator: Accelerator, write: bool = True) -> Scores:
        """The scores, the same on every process.

        `write=False` leaves out what has to be generated. Raises nothing for a bad model: a loss that is not finite
        is returned as it is.
        """
        with evaluating(network), torch.no_grad(), accelerator.autocast():
            columns, guesses = self._likelihood(network, accelerator)
            if getattr(self.asked, "pseudo_perplexity", False):
                columns |= self._pseudo_likelihood(network, accelerator)
            scores = Scores(likelihood_metrics(columns, self.objective, self.signature), {}, columns, guesses)
            return self._written(scores, self.judge, network, accelerator) if write and self.judge else scores

    # --- likelihood

    def _likelihood(self, network: Any, accelerator: Accelerator) -> tuple[Columns, Ragged]:
        """(sums by row, in the order of the data, so that they do not depend on who scored which row; best guesses).

        Both are written into arrays that are there before: what is kept of each batch would else lie between the
        buffers of the logits, which the next batch could then not use again, and memory would grow with the data.
        """
        batches = self._own_batches(accelerator)
        own = [row for batch in batches for row in batch]
        sums = np.zeros((len(self.examples), 5))
        truths = self.examples.columns.get("labels", self.examples.columns["input_ids"])
        guesses = Ragged(np.zeros(len(truths.values), np.int32), truths.offsets)
        for numbers in self.console.track(batches, "scoring"):
            self._score(network, numbers, accelerator.device, sums, guesses)
        if accelerator.num_processes > 1:
            for numbers, theirs, values in gather_object([(own, sums[own], [guesses[row] for row in own])]):
                sums[numbers] = theirs
                for number, best in zip(numbers, values, strict=True):
                    guesses[number][:] = best
        names = ("nll", "tokens", "correct", "correct_top5", "bytes")
        return {n: column for n, column in zip(names, sums.T, strict=True) if n != "bytes" or column.any()}, guesses

    def _score(self, network: Any, numbers: list[int], device: Any, sums: np.ndarray, guesses: Ragged) -> None:
        """Enter what these rows come to; out of memory, in two halves. Raises Stopped."""
        signals.check()
        contents = [self.examples[None, row] for row in numbers]
        batch = self.collate(contents)
        scores = None
        try:
            scores = self.loss.score(network, {name: tensor.to(device) for name, tensor in batch.items()})
        except (RuntimeError, MemoryError) as error:
            if len(numbers) == 1 or not is_out_of_memory(error):
                raise
        if scores is None:
            free_device_memory()
            half = len(numbers) // 2
            for part in (numbers[:half], numbers[half:]):
                self._score(network, part, device, sums, guesses)
            return
        taken = (scores.nll, scores.tokens, scores.correct, scores.correct_top5)
        sums[numbers, :4] = torch.stack([column.cpu().double() for column in taken], dim=1)
        sums[numbers, 4] = [
            self._scored_bytes(content, row) for content, row in zip(contents, batch["labels"], strict=True)
        ]
        for number, best in zip(numbers, scores.guesses, strict=True):
            guesses[number][: len(best)] = best

    def try_out(self, network: Any, accelerator: Accelerator) -> None:
        """The largest batch scored, and where there is a judge a batch of texts generated, to see that it works."""
        with evaluating(network), torch.no_grad(), accelerator.autocast():
            rows = longest_first(self.examples.lengths, self.asked.batch_size)[0].tolist()
            truths = self.examples.columns.get("labels", self.examples.columns["input_ids"])
            guesses = Ragged(np.zeros(len(truths.values), np.int32), truths.offsets)
            self._score(network, rows, accelerator.device, np.zeros((len(self.examples), 5)), guesses)
            if self.judge:
                some = self._longest_first()[: generation.ROWS_AT_ONCE]
                list(generation.generate_rows(network, self.tokenizer, self.examples, some, self.settings))

    def _own_batches(self, accelerator: Accelerator) -> list[list[int]]:
        """This process's share."""
        batches = longest_first(self.examples.lengths, self.asked.batch_size)
        return [batches[n].tolist() for n in range(accelerator.process_index, len(batches), accelerator.num_processes)]

    def _longest_first(self) -> list[int]:
        return [int(row) for row in np.argsort(-self.examples.lengths, kind="stable")]

    def _scored_bytes(self, content: dict[str, Any], labels: torch.Tensor) -> int:
        """UTF-8 bytes of the tokens that are scored, where they were measured."""
        if "num_bytes" not in content:
            return 0
        sizes = content["num_bytes"]
        return int(sizes[(labels != IGNORED).numpy()[: len(sizes)]].sum())

    def _pseudo_likelihood(self, network: Any, accelerator: Accelerator) -> Columns:
        """Every token predicted from all the others (Salazar et al., "Masked language model scoring", ACL 2020)."""
        own = [row for batch in self._own_batches(accelerator) for row in batch]
        parts = [
            (row, *self._one_by_one(network, accelerator, self.examples[None, row]["input_ids"]))
            for row in self.console.track(own, "masking each token")
        ]
        _, nll, tokens = zip(*sorted(_from_all(parts, accelerator)), strict=True)
        return {"pseudo_nll": np.array(nll, dtype=np.float64), "pseudo_tokens": np.array(tokens, dtype=np.float64)}

    def _one_by_one(self, network: Any, accelerator: Accelerator, ids: np.ndarray) -> tuple[float, int]:
        ordinary = np.flatnonzero(~np.isin(ids, self.tokenizer.all_special_ids))
        total = 0.0
        for start in range(0, len(ordinary), self.asked.batch_size):
            signals.check()
            at = ordinary[start : start + self.asked.batch_size]
            shown = np.tile(ids.astype(np.int64), (len(at), 1))
            labels = np.full_like(shown, IGNORED)
            each = np.arange(len(at))
            labels[each, at], shown[each, at] = ids[at], self.tokenizer.mask_token_id
            whole = np.array([len(ids)])
            rows = [{"input_ids": i, "labels": t, "lengths": whole} for i, t in zip(shown, labels, strict=True)]
            batch = self.collate(rows)
            scores = self.loss.score(network, {name: tensor.to(accelerator.device) for name, tensor in batch.items()})
            total += float(scores.nll.sum())
        return total, len(ordinary)

    # --- generated text

    def _written(self, scores: Scores, judge: Judge, network: Any, accelerator: Accelerator) -> Scores:
        outputs = generation.generate_rows(
            network, self.tokenizer, self.examples, self._longest_first(), self.settings,
            (accelerator.process_index, accelerator.num_processes),
            lambda batches: self.console.track(batches, "generating"),
        )  # fmt: skip
        written = dict(_from_all(list(outputs), accelerator))
        predictions = [written[row].text for row in range(len(self.examples))]
        capped = sum(output.capped for output in written.values()) / len(written)
        made = scores.metrics | judge.score(predictions)
        return replace(
            scores,
            metrics=made,
            others=judge.numbers(predictions, made),
            predictions=predictions,
            notes=self._notes(made, judge, capped),
            generation={**generation.generation_arguments(network, self.tokenizer, self.settings), "hit_cap": capped},
        )

    def _notes(self, made: dict[str, Metric], judge: Judge, capped: float) -> tuple[str, ...]:
        notes = []
        if "bleu" in made:
            notes += [judge.writing.note] if judge.writing.note else []
            if "eff:yes" in made["bleu"].signature:
                notes.append("no reference has four words, so BLEU is made of the n-grams that there are (eff:yes)")
        if capped:
            notes.append(f"{capped:.1%} of the outputs were cut off at {self.settings.max_new_tokens} tokens; "
                         "--max-new-tokens allows more")  # fmt: skip
        return tuple(notes)

    # --- what there is to look at

    def samples(self, network: Any, count: int) -> list[Sample]:
        with evaluating(network):
            return self.objective.sample(network, self.tokenizer, self.examples, count, self.collate, self.settings)

    def records(self, scores: Scores) -> Iterator[dict[str, Any]]:
        """Of each row: source, prediction, references, and what it adds to the figures (a line of predictions.jsonl)."""
        for row, texts in enumerate(self._texts(scores)):
            sums = {name: plain_number(column[row]) for name, column in scores.columns.items()}
            by_row = {n: m.of_row(row) for n, m in scores.metrics.items() if n in metrics.TEXT_METRICS and n != "bleu"}
            loss = metrics.mean(sums["nll"], sums["tokens"]) if sums["tokens"] else None
            yield {"row": row, **texts, "eval_loss": loss, **sums, **by_row}

    def _texts(self, scores: Scores) -> Iterator[dict[str, Any]]:
        if scores.predictions is not None and self.judge:
            for (source, *references), prediction in zip(self.examples.texts or (), scores.predictions, strict=True):
                yield {"source": source, "prediction": prediction, "references": references}
            return
        for row in range(len(self.examples)):
            batch = self.collate([self.examples[None, row]])
            labels, shown = batch["labels"][0].numpy(), batch["input_ids"][0].numpy()
            asked = labels != IGNORED
            guessed, truth = shown.copy(), np.where(asked, labels, shown)
            guessed[asked] = scores.guesses[row][: asked.sum()]
            yield self.objective.describe_row(self.tokenizer, shown, guessed, truth, asked)


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
    """The evaluation that a recipe asks for. Raises UsageError, InputError for metrics that cannot be had."""
    section, limits = recipe.eval, examples.limits
    if section.best_metric == "bits_per_byte" and "num_bytes" not in examples.columns:
        raise UsageError(f"--best-metric bits_per_byte: {examples.kind} rows have no such figure; take eval_loss")
    settings, judge = GenerationSettings(), None
    if isinstance(section, PairEval):
        # One more than the longest target has, so that an output which ends where it does is seen to have ended.
        most = min(limits["max_target_length"] + 1, limits.positions or 1 << 30)
        settings = GenerationSettings(
            section.num_beams, section.max_new_tokens or most, section.length_penalty, section.no_repeat_ngram_size
        )
        judge = text_metrics.judge([references for _, *references in examples.texts or ()], section)
    described = objective.signature(recipe.data, examples.kind, recipe.train.seed)
    how = signature(limits.resolved, described, precision)
    return Evaluator(objective, examples, tokenizer, collator, loss, section, settings, judge, how, console)


def _from_all(parts: list[Any], accelerator: Accelerator) -> list[Any]:
    return gather_object(parts) if accelerator.num_processes > 1 else parts
