"""The rows of an evaluation in words: the lines of predictions.jsonl."""

from collections.abc import Iterator
from typing import Any

from lmtrain import metrics
from lmtrain.evaluation.evaluator import Evaluator
from lmtrain.evaluation.scores import Scores, plain_number
from lmtrain.preprocessing.batch import IGNORED


def records(evaluator: Evaluator, scores: Scores) -> Iterator[dict[str, Any]]:
    """Source, prediction, references, sums and text metrics of each row, numbered within its evaluation set."""
    places = {row: (name, n) for name, own in evaluator.sets.items() for n, row in enumerate(own.rows.tolist())}
    for row, texts in enumerate(_texts(evaluator, scores)):
        name, number = places[row]
        sums = {sum_: plain_number(column[row]) for sum_, column in scores.row_sums.items()}
        by_row = {n: m.of_row(number) for n, m in scores.sets[name].metrics.items() if n in metrics.TEXT_METRICS}
        by_row.pop("bleu", None)
        loss = metrics.mean(sums["nll"], sums["tokens"]) if sums["tokens"] else None
        yield {**({"set": name} if name else {}), "row": number, **texts, "eval_loss": loss, **sums, **by_row}


def _texts(evaluator: Evaluator, scores: Scores) -> Iterator[dict[str, Any]]:
    examples = evaluator.examples
    if scores.outputs is not None:
        for (source, *references), output in zip(examples.texts or (), scores.outputs, strict=True):
            yield {"source": source, "prediction": output, "references": references}
        return
    for row in range(len(examples)):
        batch = evaluator.collator([examples[None, row]])
        labels, shown = batch["labels"][0].numpy(), batch["input_ids"][0].numpy()
        best = scores.predicted_tokens[row][: (labels != IGNORED).sum()]
        yield evaluator.objective.describe_row(evaluator.tokenizer, shown, labels, best)
