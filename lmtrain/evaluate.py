"""Token-exact evaluation: sums over rows, whatever the batches and processes; no logits are kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from lmtrain import generate, metrics
from lmtrain.collate import IGNORED, Collate
from lmtrain.encode import Examples
from lmtrain.loss import TokenLoss, evaluating
from lmtrain.objectives import Objective
from lmtrain.sources import Rows


@dataclass(frozen=True)
class Evaluation:
    """Everything that the figures depend on, so that training's own and any later evaluation are the same."""

    objective: Objective
    examples: Examples
    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    collate: Collate
    loss: TokenLoss
    batch_size: int
    settings: generate.Settings

    def run(self, network: Any, accelerator: Accelerator, write: bool = True) -> dict[str, float]:
        """The figures by their plain names, the same on every process.

        `write=False` leaves out what has to be generated. Raises nothing for a bad model: a loss that is not finite
        is returned as it is.
        """
        with evaluating(network), torch.no_grad(), accelerator.autocast():
            figures = self._likelihood(network, accelerator)
            if write and self.objective.transforms:
                figures |= self._written(network, accelerator)
        return figures

    def _own_rows(self, accelerator: Accelerator) -> list[int]:
        """This process's share, the longest rows first so that a batch has little padding."""
        order = np.argsort(-self.examples.lengths, kind="stable")
        return [int(row) for row in order[accelerator.process_index :: accelerator.num_processes]]

    def _likelihood(self, network: Any, accelerator: Accelerator) -> dict[str, float]:
        own = self._own_rows(accelerator)
        parts: list[tuple[int, float, int, int, int, int]] = []
        for start in range(0, len(own), self.batch_size):
            numbers = own[start : start + self.batch_size]
            contents = [self.examples[None, row] for row in numbers]
            batch = self.collate(contents)
            sizes = [self._scored_bytes(c, row) for c, row in zip(contents, batch["labels"], strict=True)]
            scores = self.loss.score(network, {name: tensor.to(accelerator.device) for name, tensor in batch.items()})
            columns = (scores.nll, scores.tokens, scores.correct, scores.correct_top5)
            parts += zip(numbers, *(column.tolist() for column in columns), sizes, strict=True)
        # In the order of the data, so that the float sum does not depend on who scored which row.
        every = sorted(gather_object(parts) if accelerator.num_processes > 1 else parts)
        nll, tokens, correct, top5, size = (sum(column) for column in list(zip(*every, strict=True))[1:])
        loss = nll / tokens if tokens else 0.0
        figures = {"eval_loss": loss, "perplexity": metrics.perplexity(loss)}
        if size:
            figures["bits_per_byte"] = metrics.bits_per_byte(nll, size)
        figures[self.objective.accuracy] = correct / max(tokens, 1)
        if self.objective.top5:
            figures[self.objective.top5] = top5 / max(tokens, 1)
        return figures

    def _scored_bytes(self, content: dict[str, Any], labels: torch.Tensor) -> int:
        """UTF-8 bytes of the tokens that are scored, where they were measured."""
        if "num_bytes" not in content:
            return 0
        sizes = content["num_bytes"]
        return int(sizes[(labels != IGNORED).numpy()[: len(sizes)]].sum())

    def _written(self, network: Any, accelerator: Accelerator) -> dict[str, float]:
        outputs = generate.transform(
            network, self.tokenizer, self.examples, self._own_rows(accelerator), self.batch_size, self.settings
        )
        written = list(outputs)
        every = dict(gather_object(written) if accelerator.num_processes > 1 else written)
        assert self.examples.origins is not None
        references = [self.rows.values[origin][1] for origin in self.examples.origins]
        predictions = [every[row] for row in range(len(self.examples))]
        return {"exact_match": metrics.exact_match(predictions, references)}

    def samples(self, network: Any, count: int) -> list[generate.Sample]:
        with evaluating(network):
            return self.objective.sample(network, self.tokenizer, self.examples, count, self.collate, self.settings)
