"""Feature vectors from the last hidden states of an encoder, one per text or one per word.

A text's vector is the mean over its tokens, special tokens such as [CLS] and [SEP] included, as sentence encoders pool;
a word's vector is the state of its first token. Padding never contributes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from lmtrain.config.architectures import made_for
from lmtrain.config.model import Model
from lmtrain.errors import UsageError
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.loss import PADDING_TOLERANCE, evaluating
from lmtrain.modeling.network import load_encoder, positions
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.sampler import longest_first
from lmtrain.preprocessing.words import check_is_fast, first_tokens, joined
from lmtrain.runtime.console import Console

DEFAULT_MAX_LENGTH = 512
"""Tokens of a row at most without --max-length, or fewer if the model has fewer positions."""


@dataclass(frozen=True)
class EncodedRows:
    """Token ids of rows, and where their words are."""

    ids: list[list[int]]
    first_tokens: list[np.ndarray] | None
    """[words] of each row: the position of each word's first token, -1 if it has none or is cut off. None for texts."""
    truncated: int
    """How many rows were cut at the maximum length."""

    @cached_property
    def word_positions(self) -> list[np.ndarray] | None:
        """`first_tokens` without the words that have no vector."""
        return None if self.first_tokens is None else [tokens[tokens >= 0] for tokens in self.first_tokens]

    @cached_property
    def offsets(self) -> np.ndarray:
        """[rows + 1] index of the first vector of each row."""
        counts = [1] * len(self.ids) if self.word_positions is None else [len(row) for row in self.word_positions]
        return np.cumsum([0, *counts])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids], np.int64)

    def batch(self, rows: Sequence[int]) -> tuple[list[list[int]], list[np.ndarray] | None]:
        """(token ids, word positions) of these rows."""
        return [self.ids[row] for row in rows], self.word_positions and [self.word_positions[row] for row in rows]

    def vector_indices(self, rows: Sequence[int]) -> np.ndarray:
        """The indices of the vectors of these rows, in the order of `rows`."""
        return np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])


@dataclass(frozen=True)
class Encoder:
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    notes: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode_texts(self, texts: Sequence[str]) -> EncodedRows:
        """Tokenize texts, cut at `max_length`."""
        ids = self._tokenize(texts)["input_ids"]
        return EncodedRows(ids, None, self._count_truncated(texts, ids))

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> EncodedRows:
        """Tokenize sentences of words, cut at `max_length`, and find each word's first token. Raises InputError."""
        check_is_fast(self.tokenizer)
        texts = [joined(words) for words in sentences]
        encoding = self._tokenize(texts, offsets=True)
        spans = encoding["offset_mapping"]
        found = [first_tokens(words, own) for words, own in zip(sentences, spans, strict=True)]
        return EncodedRows(encoding["input_ids"], found, self._count_truncated(texts, encoding["input_ids"]))

    def _tokenize(self, texts: Sequence[str], offsets: bool = False) -> BatchEncoding:
        options = {"return_offsets_mapping": True} if offsets else {}
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length, **options)

    def _count_truncated(self, texts: Sequence[str], ids: list[list[int]]) -> int:
        """How many rows were cut. Only rows of the maximum length can be, so only those are tokenized again."""
        full = [text for text, row in zip(texts, ids, strict=True) if len(row) >= self.max_length]
        return sum(len(row) > self.max_length for row in self.tokenizer(full)["input_ids"]) if full else 0

    def vectors(self, ids: list[list[int]], word_positions: list[np.ndarray] | None) -> torch.Tensor:
        """[vectors, d] of a batch of rows: the mean state of each row, or the states at its `word_positions`."""
        width = max(1, *map(len, ids))
        pad = self.tokenizer.pad_token_id or 0
        batch = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self.device)
        states: torch.Tensor = self.network(input_ids=batch, attention_mask=mask).last_hidden_state
        if word_positions is None:
            # Not a product with the mask: states at padding may be NaN.
            real = states.masked_fill(mask[..., None] == 0, 0.0)
            return real.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        rows = np.repeat(np.arange(len(word_positions)), [len(own) for own in word_positions])
        return states[torch.from_numpy(rows), torch.from_numpy(np.concatenate(word_positions))]

    def features(self, encoded: EncodedRows, batch_size: int, console: Console, what: str = "encoding") -> np.ndarray:
        """[vectors, d] float64 of all rows in their order, computed without gradient and dropout."""
        features: np.ndarray | None = None
        with evaluating(self.network), torch.no_grad():
            for rows in console.track(self._batches(encoded, batch_size), what):
                own = self.vectors(*encoded.batch(rows)).double().cpu().numpy()
                features = np.empty((encoded.offsets[-1], own.shape[1])) if features is None else features
                features[encoded.vector_indices(rows)] = own
        assert features is not None
        return features

    def _batches(self, encoded: EncodedRows, size: int) -> list[list[int]]:
        """Batches of rows, longest first; if padding changes the states, only rows of one length share a batch."""
        lengths = encoded.lengths
        batches = longest_first(lengths, size)
        if not self._depends_on_padding(encoded, int(lengths.argmin()), int(lengths.argmax())):
            return [batch.tolist() for batch in batches]
        return [
            rows.tolist() for batch in batches for rows in np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)
        ]

    def _depends_on_padding(self, encoded: EncodedRows, short: int, long: int) -> bool:
        """Whether the mean state of row `short` changes when it is padded to the length of row `long`."""
        texts = replace(encoded, first_tokens=None)
        alone = self.vectors(*texts.batch([short]))[0]
        padded = self.vectors(*texts.batch([short, long]))[0]
        return bool((alone - padded).abs().max() > PADDING_TOLERANCE * alone.abs().max())


def load(model: Model, max_length: int | None, console: Console) -> Encoder:
    """Load an encoder onto the accelerator, or the CPU if there is none.

    Raises InputError for a model that cannot be loaded, UsageError for a `max_length` above its positions.
    """
    config = load_config(model, None)
    objective = made_for(config.model_type)
    assert objective
    with console.working(f"loading {model.name}"):
        tokenizer, notes, warnings = load_tokenizer(model)
        network = load_encoder(model, config, tokenizer, OBJECTIVES[objective].auto_model)
    for line in warnings:
        console.warn(line)
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False  # the key-value cache is for generation only
    most = positions(network)
    if max_length and most and max_length > most:
        raise UsageError(f"--max-length {max_length}: {model.name} has {most} positions")
    if OBJECTIVES[objective].shift:
        notes.append(f"{model.name} reads from left to right, so the state of a word cannot depend on later words")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    default = min(most or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    network.to(device)  # type: ignore[arg-type]  # transformers wraps it
    return Encoder(network, tokenizer, max_length or default, tuple(notes))


def batches_of(order: np.ndarray, size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size].tolist()
