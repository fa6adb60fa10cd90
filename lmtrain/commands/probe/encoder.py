"""What an encoder makes of texts: one vector a text, or one a word.

A text is the mean of the last hidden states of all its tokens, those that frame it ([CLS], [SEP]) included, as
sentence encoders are trained to be read; a word is the state of its first token. What pads a batch is never read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmtrain.config.architectures import made_for
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.loss import PADDING_TOLERANCE, evaluating
from lmtrain.modeling.network import load_encoder, positions
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.sampler import longest_first
from lmtrain.runtime.console import Console

LONGEST = 512
"""Tokens of a row at most where nothing else is said and the model has positions for more."""


@dataclass(frozen=True)
class Ids:
    """Rows as an encoder reads them.

    `places[i]`, of tagged words: where in row i the first token of each word stands, -1 for a word that has none or that
    is cut off; None where a row is one text.
    """

    ids: list[list[int]]
    places: list[np.ndarray] | None
    truncated: int
    """Rows that are cut."""

    @cached_property
    def read(self) -> list[np.ndarray] | None:
        """Of each row the places of the words that have a vector."""
        return None if self.places is None else [own[own >= 0] for own in self.places]

    @cached_property
    def offsets(self) -> np.ndarray:
        """[rows + 1] where the vectors of a row start."""
        counts = [1] * len(self.ids) if self.read is None else [len(own) for own in self.read]
        return np.cumsum([0, *counts])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids], np.int64)

    def of(self, rows: Sequence[int]) -> tuple[list[list[int]], list[np.ndarray] | None]:
        """(ids, places that are read) of some rows."""
        return [self.ids[row] for row in rows], self.read and [self.read[row] for row in rows]

    def numbers(self, rows: Sequence[int]) -> np.ndarray:
        """The numbers of the vectors of some rows, in their order."""
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

    def encode(self, values: Sequence[Any], tagged: bool) -> Ids:
        """The ids of texts, or of `tagged` words, cut at `max_length`. Raises InputError."""
        if not tagged:
            rows = self._tokenized(values)
            return Ids(rows["input_ids"], None, self._cut(values, rows["input_ids"]))
        if not self.tokenizer.is_fast:
            raise InputError(
                f"{self.tokenizer.name_or_path}: its tokenizer does not tell which token is of which word"
            )
        rows = self._tokenized([" ".join(words) for words in values], return_offsets_mapping=True)
        places = [_first_tokens(words, spans) for words, spans in zip(values, rows["offset_mapping"], strict=True)]
        return Ids(rows["input_ids"], places, self._cut([" ".join(words) for words in values], rows["input_ids"]))

    def _tokenized(self, texts: Sequence[str], **more: Any) -> Any:
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length, **more)

    def _cut(self, texts: Sequence[str], rows: list[list[int]]) -> int:
        """How many rows had to be cut; only those that are as long as can be are asked."""
        full = [text for text, row in zip(texts, rows, strict=True) if len(row) >= self.max_length]
        return sum(len(row) > self.max_length for row in self.tokenizer(full)["input_ids"]) if full else 0

    def vectors(self, ids: list[list[int]], places: list[np.ndarray] | None) -> torch.Tensor:
        """[vectors, d] of a batch of rows: the mean of each, or the states at its `places`."""
        width = max(1, *map(len, ids))
        pad = self.tokenizer.pad_token_id or 0
        batch = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self.device)
        states = self.network(input_ids=batch, attention_mask=mask).last_hidden_state
        if places is None:
            # Not a product with the mask: what a model leaves at padding may not be a number.
            own = states.masked_fill(mask[..., None] == 0, 0.0)
            return own.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        rows = np.repeat(np.arange(len(places)), [len(own) for own in places])
        return states[torch.from_numpy(rows), torch.from_numpy(np.concatenate(places))]

    def features(self, encoded: Ids, batch_size: int, console: Console, what: str = "encoding") -> np.ndarray:
        """[vectors, d] float64 of all rows, in their order, without dropout."""
        found: np.ndarray | None = None
        with evaluating(self.network), torch.no_grad():
            for rows in console.track(self._batches(encoded, batch_size), what):
                own = self.vectors(*encoded.of(rows)).double().cpu().numpy()
                found = np.empty((encoded.offsets[-1], own.shape[1])) if found is None else found
                found[encoded.numbers(rows)] = own
        assert found is not None
        return found

    def _batches(self, encoded: Ids, size: int) -> list[list[int]]:
        """Rows from the longest on; of a model that reads padding only rows of one length together."""
        lengths = encoded.lengths
        batches = longest_first(lengths, size)
        if not self._reads_padding(encoded, int(lengths.argmin()), int(lengths.argmax())):
            return [batch.tolist() for batch in batches]
        return [
            rows.tolist() for batch in batches for rows in np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)
        ]

    def _reads_padding(self, encoded: Ids, short: int, long: int) -> bool:
        """Whether what it makes of a row depends on how far its batch is padded."""
        whole = replace(encoded, places=None)
        alone = self.vectors(*whole.of([short]))[0]
        together = self.vectors(*whole.of([short, long]))[0]
        return bool((alone - together).abs().max() > PADDING_TOLERANCE * alone.abs().max())


def _first_tokens(words: list[str], spans: list[tuple[int, int]]) -> np.ndarray:
    """[words] the first token of each word of a sentence that was joined by blanks; -1 where there is none.

    `spans` are the characters of the tokens. By them and not by the tokenizer's own word numbers, which are another
    thing to every tokenizer (a hyphen parts words) and which byte-level ones only have for a text with a blank before it.
    """
    places = np.full(len(words), -1)
    token = start = 0
    for number, word in enumerate(words):
        end = start + len(word)
        while token < len(spans) and (spans[token][1] <= start or spans[token][0] == spans[token][1]):
            token += 1
        if token < len(spans) and spans[token][0] < end:
            places[number] = token
        start = end + 1
    return places


def load(model: Model, max_length: int | None, console: Console) -> Encoder:
    """The encoder on the device there is. Raises InputError, UsageError for a length that it has no positions for."""
    config = load_config(model, None)
    objective = made_for(config.model_type)
    assert objective
    with console.working(f"loading {model.name}"):
        tokenizer, told = load_tokenizer(model)
        network = load_encoder(model, config, tokenizer, OBJECTIVES[objective].auto_model)
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False  # nothing is generated
    most = positions(network)
    if max_length and most and max_length > most:
        raise UsageError(f"--max-length {max_length}: {model.name} has {most} positions")
    if OBJECTIVES[objective].shift:
        told.append(f"{model.name} reads from left to right: what a word is can only depend on what is before it")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return Encoder(network.to(device), tokenizer, max_length or min(most or LONGEST, LONGEST), tuple(told))


def batches_of(order: np.ndarray, size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size].tolist()
