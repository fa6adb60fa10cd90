"""Sequence-to-sequence: everything that only `seq2seq` does.

Pairs of source and target, or plain text made into pairs by a denoising task (T5, BART, Pegasus).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from lmtrain.config.data import Data, PairData
from lmtrain.data.prompts import Prompt
from lmtrain.data.rows import Rows
from lmtrain.objectives.defaults import Defaults
from lmtrain.objectives.denoising_encoder import encode_for_denoising
from lmtrain.objectives.generation import GenerationSettings, decode, generate_rows, generate_texts
from lmtrain.objectives.prompting import Answer, PromptingOptions, answer_of, check_length, text_of, write_one
from lmtrain.objectives.samples import Sample
from lmtrain.objectives.token_roles import View
from lmtrain.objectives.views import PAIR_VIEW
from lmtrain.preprocessing import denoising
from lmtrain.preprocessing.batch import Batch, Collator, Row, pad_id, padded_batch
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    apply_long_policy,
    finish_examples,
    start_ledgers,
)
from lmtrain.preprocessing.languages import set_languages
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.train_tokenizer import SEQUENCE_TOKENS, SpecialTokens


class Seq2SeqLM(Defaults):
    """Turn one text into another."""

    name = "seq2seq"
    auto_model = AutoModelForSeq2SeqLM
    task_type = "SEQ_2_SEQ_LM"
    special_tokens = SpecialTokens(SEQUENCE_TOKENS, "$A </s>")
    shift = 0

    @property
    def view(self) -> View:
        return PAIR_VIEW

    def special_tokens_for(self, data: Data) -> SpecialTokens:
        assert isinstance(data, PairData)
        return denoising.special_tokens_for(self.special_tokens, data.denoise)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Raise InputError if the special tokens that --denoise needs are missing."""
        assert isinstance(data, PairData)
        if data.denoise != "none":
            denoising.noise_for(tokenizer, data)

    def set_languages(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        """Raise UsageError for a language that the tokenizer does not know."""
        assert isinstance(data, PairData)
        set_languages(tokenizer, data.source_lang, data.target_lang)

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Data, limits: Limits, measure: bool
    ) -> Examples:
        """Columns `input_ids` (the source) and `labels` (the target), both with the tokenizer's special tokens."""
        assert isinstance(data, PairData)
        self.set_languages(tokenizer, data)
        encode = encode_for_denoising if rows.kind == "text" else _encode_pairs
        return encode(rows, tokenizer, data, limits, measure)

    def collator(self, tokenizer: PreTrainedTokenizerBase, data: Data, seed: int) -> PairCollator:
        """Raises InputError as `check_tokenizer`."""
        assert isinstance(data, PairData)
        noise = None if data.denoise == "none" else denoising.noise_for(tokenizer, data)
        if noise is None or isinstance(noise, denoising.GapSentences):
            return PairCollator(pad_id(tokenizer))
        return DenoisingCollator(pad_id(tokenizer), noise=noise, seed=seed)

    def signature(self, data: Data, kind: str, seed: int) -> dict[str, str | int | bool | None]:
        """What the likelihood of a row depends on, besides its lengths."""
        assert isinstance(data, PairData)
        if data.denoise == "none":
            return {"on_long": data.on_long}
        density, mean = data.noise
        noise = f"{data.denoise}x{density:g}" + (f"x{mean:g}" if mean else "")
        return {"noise": noise, "on_long": data.on_long}

    def length_notes(self, data: Data) -> list[str]:
        """Notes on limits that were not requested."""
        assert isinstance(data, PairData)
        if data.denoise != "none" or (data.max_source_length and data.max_target_length):
            return []
        return ["max lengths are chosen to fit 99% of the pairs; --on-long decides what happens to longer ones"]

    def sample(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        rows: Sequence[int],
        collator: Collator,
        settings: GenerationSettings,
    ) -> list[Sample]:
        """A source, the model's output, and the target."""
        written = dict(generate_rows(network, tokenizer, examples, list(rows), settings))
        return [
            {
                # A denoised text shows the sentinels of what was taken out.
                "input": examples.texts[row][0]
                if examples.kind == "text" and examples.texts
                else decode(tokenizer, examples.columns["input_ids"][row]),
                "output": written[row].text,
                "reference": decode(tokenizer, examples.columns["labels"][row]),
            }
            for row in rows
        ]

    def answer(
        self, network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], options: PromptingOptions
    ) -> list[Answer]:
        """What the model turns each text into. Raises InputError for a text that is too long."""
        sources = source_ids(tokenizer, [text_of(prompt) for prompt in prompts], options.prefix)
        for prompt, ids in zip(prompts, sources, strict=True):
            check_length(network, len(ids), prompt)
        if options.settings.num_beams > 1:
            return [write_one(network, tokenizer, ids, options) for ids in sources]
        return [answer_of(written) for written in generate_texts(network, tokenizer, sources, options.settings)]


@dataclass(frozen=True)
class PairCollator:
    """Source and target, padded separately; the decoder's inputs follow from the labels (loss.py)."""

    pad: int
    source_length: int | None = None
    target_length: int | None = None

    @property
    def fixed(self) -> bool:
        return self.source_length is not None or self.target_length is not None

    def padded_to(self, lengths: Mapping[str, int]) -> Self:
        return replace(self, source_length=lengths["max_source_length"], target_length=lengths["max_target_length"])

    def __call__(self, rows: list[Row]) -> Batch:
        return padded_batch(rows, [self.scored(row) for row in rows], self.pad, self.source_length, self.target_length)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        return row["input_ids"], row["labels"]


@dataclass(frozen=True)
class DenoisingCollator(PairCollator):
    """Makes a new source and target from each text every epoch (denoising.py). Rows with labels stay as they are."""

    noise: denoising.Noise = field(kw_only=True)
    seed: int = field(kw_only=True)

    def scored(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        if "labels" in row:
            return super().scored(row)
        (number,), starts = row["numbers"], row.get("sentence_starts")
        return self.noise(row["input_ids"], starts, int(number), (self.seed, row["epoch"] + 1))


# --- rows -> ids -----------------------------------------------------------------------------------------------------


def _encode_pairs(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: PairData, limits: Limits, measure: bool
) -> Examples:
    if not rows.values:  # a chunk of a stream without usable rows
        empty = Ragged.of([])
        return finish_examples({"input_ids": empty, "labels": empty}, start_ledgers(rows), rows, [], limits)
    sources = source_ids(tokenizer, [source for source, *_ in rows.values], data.source_prefix)
    targets = tokenizer(text_target=[target for _, target, *_ in rows.values], verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None:
        targets = [ids if end in ids[-2:] else [*ids, end] for ids in targets]
    limits = limits.resolve("max_source_length", data.max_source_length, _length_needed(sources, measure))
    limits = limits.resolve("max_target_length", data.max_target_length, _length_needed(targets, measure))
    longest = limits["max_source_length"], limits["max_target_length"]
    special = set(tokenizer.all_special_ids)
    ledgers = start_ledgers(rows)
    kept: tuple[list[Any], list[Any]] = ([], [])
    origins = []
    for index, pair in enumerate(zip(sources, targets, strict=True)):
        short = [_shorten(ids, most, special) for ids, most in zip(pair, longest, strict=True)]
        ledger = ledgers[rows.source(index)]
        whole, left = sum(map(len, pair)), sum(map(len, short))
        if left == whole:
            ledger.use(whole)
        elif not apply_long_policy(ledger, whole, left, rows.location(index), data.on_long or "truncate"):
            continue
        for column, ids in zip(kept, short, strict=True):
            column.append(ids)
        origins.append(index)
    columns = {"input_ids": Ragged.of(kept[0]), "labels": Ragged.of(kept[1])}
    texts = [rows.values[index] for index in origins] if measure else None
    return finish_examples(columns, ledgers, rows, origins, limits, texts=texts)


def source_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], prefix: str) -> list[list[int]]:
    return tokenizer([prefix + text for text in texts], verbose=False)["input_ids"]


def _length_needed(rows: list[list[int]], measure: bool) -> int:
    """Tokens that 99% of the rows need; with `measure`, all rows."""
    return max(int(np.percentile([len(ids) for ids in rows], 100 if measure else 99, method="higher")), 2)


def _shorten(ids: list[int], most: int, special: set[int]) -> list[int]:
    """At most `most` ids. Special tokens at the end stay, so that a truncated target still ends."""
    if len(ids) <= most:
        return ids
    tail = 0
    while tail < most - 1 and ids[-tail - 1] in special:
        tail += 1
    return [*ids[: most - tail], *ids[len(ids) - tail :]]
