"""Extractive question answering: the answer to a question is a part of a text, found by its first and last token.

Devlin et al., "BERT", 2019, sections 4.2 and 4.3. A long context is read in windows that overlap; the best answer of all windows
counts. Where the training data have questions without an answer, the score of the first token of a window is that of no
answer, and the least one of all windows is compared with the best answer (Rajpurkar et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lmtrain.config.data import Data
from lmtrain.config.eval import LONGEST_ANSWER
from lmtrain.config.labelled_data import PAIR_SEPARATOR, ClassData
from lmtrain.data.labels import NO_ANSWER
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError, visible
from lmtrain.modeling.label_loss import SpanLoss, span_scores
from lmtrain.objectives.generation import GenerationSettings
from lmtrain.objectives.label_objective import LabelObjective
from lmtrain.objectives.prompting import Answer, PromptingOptions, text_of
from lmtrain.objectives.samples import Sample
from lmtrain.objectives.views import ANSWER_VIEW
from lmtrain.preprocessing.batch import Collator, Row, pad_id
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import finish_examples, start_ledgers
from lmtrain.preprocessing.label_collator import NOT_IN_CONTEXT, LabelCollator
from lmtrain.preprocessing.question_windows import Windows
from lmtrain.preprocessing.ragged import Ragged

WINDOW = 384
"""Tokens of a window, unless --max-length says otherwise."""

CANDIDATES = 20
"""Answers of each window that `generate` compares."""

BETWEEN = "\n"
"""Between a question and its context in the texts that are shown."""


@dataclass(frozen=True)
class QuestionAnswering(LabelObjective):
    """Find the answer to a question in a text."""

    kind: str = "question"
    view = ANSWER_VIEW

    @property
    def may_abstain(self) -> bool:
        """Whether a question may have no answer."""
        return NO_ANSWER in self.labels

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """A row for each window of each question.

        Columns: `input_ids`; `labels` [2], the first and last token of the answer, both 0 where the window does not hold it;
        `token_type_ids`, if the model has them; `question` [1], the number of the question; `begins` and `ends`, the characters
        of each token of the context in the text of the question. Raises UsageError, InputError.
        """
        assert isinstance(data, ClassData)
        limits = limits.resolve("max_length", data.max_length or min(limits.positions or WINDOW, WINDOW))
        windows = Windows(tokenizer, limits["max_length"], data.doc_stride)
        ledgers, origins = start_ledgers(rows), []
        texts: list[tuple[str, ...]] = []
        unseen = 0
        columns: dict[str, list[Any]] = {name: [] for name in windows.COLUMNS} | {"labels": [], "question": []}
        for index, (content, answers) in enumerate(rows.values):
            question, context = content.split(PAIR_SEPARATOR, 1)
            ledger = ledgers[rows.source(index)]
            if windows.leaves_no_room(question):
                if data.on_long == "error":
                    raise InputError(
                        f"{rows.location(index)}: the question leaves no room for its context in {limits['max_length']} tokens"
                    )
                ledger.drop(len(tokenizer(question, verbose=False)["input_ids"]))
                continue
            found = windows.of(question, context)
            ledger.use(sum(len(window["input_ids"]) for window in found))
            base = len(question) + len(BETWEEN)
            ends = [_ends_of_answer(window, answers) for window in found]
            unseen += bool(answers) and not any(map(any, ends))
            for window, own_ends in zip(found, ends, strict=True):
                columns["labels"].append(own_ends)
                columns["question"].append([len(texts)])
                for name in ("begins", "ends"):
                    own = np.array(window[name])
                    window[name] = np.where(own == NOT_IN_CONTEXT, own, own + base)
                for name in windows.COLUMNS:
                    columns[name].append(window[name])
                origins.append(index)
            texts.append((f"{question}{BETWEEN}{context}", *(text for text, _ in answers or [("", 0)])))
        ragged = {name: Ragged.of(own) for name, own in columns.items()}
        if "token_type_ids" not in tokenizer.model_input_names:
            del ragged["token_type_ids"]
        warnings = self._warnings(unseen, sum(text[1:] == ("",) for text in texts) if measure else 0)
        return finish_examples(
            ragged, ledgers, rows, origins, limits, texts=texts if measure else None, warnings=warnings
        )

    def _warnings(self, unseen: int, unanswered: int) -> tuple[str, ...]:
        """What to say about questions whose answer no window holds, and about those without one."""
        about_windows = f"{unseen:,} answers are in no window as a whole and count as missing there; --doc-stride or --max-length help"
        about_none = f"{unanswered:,} questions have no answer, but the model always gives one: it was not trained on such questions"
        return (
            *((about_windows,) if unseen else ()),
            *((about_none,) if unanswered and not self.may_abstain else ()),
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> LabelCollator:
        return LabelCollator(pad_id(tokenizer), words=False)

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths."""
        assert isinstance(data, ClassData)
        return {"doc_stride": data.doc_stride}

    def answers(self, examples: Examples, found: Ragged) -> list[str]:
        """The answer to each question; `found` are the predictions of each window (SpanLoss.answers_per_row)."""
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        assert examples.texts is not None
        for row in range(len(found)):
            first, last = found[row][:2].tolist()
            score, without = found[row][2:].view(np.float32).tolist()
            number = int(examples.units[row])
            text = examples.texts[number][0]
            own = text[examples.columns["begins"][row][first] : examples.columns["ends"][row][last]]
            best[number] = max(best.get(number, (-np.inf, "")), (score, own.strip()), key=lambda answer: answer[0])
            nothing[number] = min(nothing.get(number, np.inf), without)
        return [
            "" if self.may_abstain and nothing[number] > best[number][0] else best[number][1]
            for number in range(len(examples.texts))
        ]

    @torch.no_grad()
    def sample(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        rows: Sequence[int],
        collator: Collator,
        settings: GenerationSettings,
    ) -> list[Sample]:
        """Questions, the answers that the model gives and their own; `rows` are the numbers of the questions."""
        assert examples.texts is not None
        samples = []
        for number in rows:
            source, *references = examples.texts[number]
            windows: list[Row] = [examples[None, int(row)] for row in np.flatnonzero(examples.units == number)]
            candidates = self._candidates(network, collator, windows, source)
            samples.append({"input": source, "output": candidates[0][0], "reference": references[0]})
        return samples

    @torch.no_grad()
    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """The answer to each question, with the probabilities of the best ones among themselves."""
        from lmtrain.modeling.network import positions

        collator = LabelCollator(pad_id(tokenizer), words=False)
        windows = Windows(tokenizer, min(positions(network) or WINDOW, WINDOW))
        answers: list[Answer] = []
        for prompt in prompts:
            question, separator, context = text_of(prompt).partition(PAIR_SEPARATOR)
            if not separator:
                raise InputError(
                    f"'{visible(question, 40)}': a question needs the text that holds its answer: rows with question and context, --data"
                )
            if windows.leaves_no_room(question):
                raise InputError(f"'{visible(question, 40)}': the question leaves no room for its context")
            rows = [
                {
                    **{name: np.array(own) for name, own in window.items()},
                    "labels": np.zeros(2, np.int64),
                    "lengths": [1],
                }
                for window in windows.of(question, context)
            ]
            candidates = self._candidates(network, collator, rows, context)
            shares = torch.tensor([score for _, score in candidates]).softmax(0).tolist()
            found = [{"text": text, "probability": share} for (text, _), share in zip(candidates, shares, strict=True)]
            answers.append({"output": candidates[0][0], "answers": found[: options.candidates]})
        return answers

    def _candidates(self, network: Any, collator: Collator, windows: list[Row], text: str) -> list[tuple[str, float]]:
        """(answer, score) of the best answers in the windows of a text, the best first; none of them twice."""
        best: dict[str, float] = {}
        nothing = np.inf
        for window in windows:
            batch = {name: tensor.to(network.device) for name, tensor in collator([window]).items()}
            logits = SpanLoss(0).aligned(network, batch)[0][0].cpu()
            scores = span_scores(logits, batch["in_context"][0].cpu(), LONGEST_ANSWER).flatten()
            top = scores.topk(min(CANDIDATES, len(scores)))
            for score, at in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                first, last = divmod(at, logits.shape[1])
                own = text[int(window["begins"][first]) : int(window["ends"][last])].strip()
                best[own] = max(best.get(own, -np.inf), score)
            nothing = min(nothing, float(logits[:, 0].sum()))
        if self.may_abstain:
            best[""] = nothing
        return sorted(((own, score) for own, score in best.items() if score > -np.inf), key=lambda found: -found[1])


def _ends_of_answer(window: dict[str, Any], answers: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """(first token, last token) of the first answer in a window; the first token of the window where it is not whole."""
    if answers:
        text, start = answers[0]
        end = start + len(text.rstrip())
        inside = [
            token
            for token, (begin, stop) in enumerate(zip(window["begins"], window["ends"], strict=True))
            if begin != NOT_IN_CONTEXT and stop > start and begin < end
        ]
        if inside and window["begins"][inside[0]] <= start and window["ends"][inside[-1]] >= end:
            return inside[0], inside[-1]
    return 0, 0
