"""Text generation: greedy, by beam search or by sampling."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from lmtrain.modeling.loss import decoder_inputs
from lmtrain.preprocessing.batch import pad_id, padded
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.languages import language_ids
from lmtrain.preprocessing.tokenizing import special_token_ids
from lmtrain.preprocessing.vocabulary import id_count
from lmtrain.runtime import signals
from lmtrain.runtime.memory import in_halves

COMPLETION_TOKENS = 40

Ids = Sequence[int] | np.ndarray
"""The token ids of one source."""

ROWS_AT_ONCE = 16
"""Rows in a batch for generation. The batches depend on the data alone: in another batch, floating-point sums differ
in the last digit, which can flip a close choice of a token and so change the whole output. With fixed batches, outputs
and their metrics are the same for every --eval-batch-size and number of processes."""


@dataclass(frozen=True)
class GenerationSettings:
    """Arguments of transformers' `generate`; None leaves the value of the model's generation config."""

    num_beams: int = 1
    max_new_tokens: int = COMPLETION_TOKENS
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_return_sequences: int = 1


@dataclass(frozen=True)
class Output:
    """A generated text. `capped`: it reached the token limit without an end token; `score`: beam search's score."""

    text: str
    capped: bool
    score: float | None = None


class Interruptible(StoppingCriteria):
    """Never stops generation by itself, but handles pending signals after every token."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        signals.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[Any], ends: Collection[int] = ()) -> str:
    """The text of `ids` without padding and the marks around a text; other special tokens are part of the text.

    `ends` are further ids that end an output. Ids outside of the vocabulary are skipped.
    """
    marks, count = _marks(tokenizer) | set(ends), id_count(tokenizer)
    text = [int(i) for i in ids if 0 <= int(i) < count and int(i) not in marks]
    return str(tokenizer.decode(text, skip_special_tokens=False))


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """The ids of padding, of the marks of begin and end, and of languages."""
    begin, end = (tokenizer.bos_token_id, tokenizer.cls_token_id), (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return {tokenizer.pad_token_id, *begin, *end, *language_ids(tokenizer)}


@dataclass(frozen=True)
class Decoder:
    """Reads ids as `decode` does, for a streamer, which asks a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    ends: Collection[int]

    def decode(self, ids: int | list[int], **_: Any) -> str:
        return decode(self.tokenizer, [ids] if isinstance(ids, int) else ids, self.ends)


def generation_arguments(
    network: Any, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings
) -> dict[str, Any]:
    """Arguments of transformers' `generate`; for an encoder-decoder with the decoder's first tokens as in training.

    In training the decoder reads the labels shifted right: the start token comes first, then, if targets begin with
    a special token (the language code of mBART-50, M2M100 or NLLB, BART's <s>), that token.
    """
    given = {name: value for name, value in vars(settings).items() if value is not None}
    if not network.config.is_encoder_decoder:
        return given
    labels = tokenizer(text_target="a")["input_ids"]
    start = decoder_inputs(network, torch.tensor([labels], device=network.device))[0, 0]
    before, _ = special_token_ids(tokenizer, target=True)
    return {**given, "decoder_start_token_id": int(start), **({"forced_bos_token_id": before[0]} if before else {})}


@torch.no_grad()
def generate_texts(
    network: Any, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Ids], settings: GenerationSettings, **more: Any
) -> list[list[Output]]:
    """The distinct outputs for each source, best first. Out of memory, the sources are processed in halves.

    A causal model continues its sources, which must have equal lengths; an encoder-decoder takes any lengths. `more`
    are further arguments of transformers' `generate`.
    """
    return in_halves(sources, lambda part: _generate_batch(network, tokenizer, part, settings, more))


def _generate_batch(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Ids],
    settings: GenerationSettings,
    more: dict[str, Any],
) -> list[list[Output]]:
    pad = pad_id(tokenizer)
    used = 0 if network.config.is_encoder_decoder else len(sources[0])
    limit = token_limit(network, used, settings.max_new_tokens)
    arguments = generation_arguments(network, tokenizer, settings) | more | {"max_new_tokens": limit}
    generated = network.generate(
        input_ids=padded([np.asarray(ids) for ids in sources], pad).to(network.device),
        attention_mask=padded([np.ones(len(ids)) for ids in sources], 0).to(network.device),
        pad_token_id=pad,
        use_cache=True,
        return_dict_in_generate=True,
        synced_gpus=False,  # each process has the whole model
        stopping_criteria=StoppingCriteriaList([Interruptible()]),
        **arguments,
    )
    skipped = 1 if network.config.is_encoder_decoder else used  # 1: the decoder start token
    scores = getattr(generated, "sequences_scores", None)
    outputs = [
        Output(
            decode(tokenizer, ids[skipped:], end_ids(network)),
            _is_capped(network, ids[skipped:], limit),
            None if scores is None else float(scores[number]),
        )
        for number, ids in enumerate(generated.sequences)
    ]
    each = settings.num_return_sequences
    return [_distinct(outputs[start : start + each]) for start in range(0, len(outputs), each)]


def _distinct(outputs: Iterable[Output]) -> list[Output]:
    found: dict[str, Output] = {}
    for output in outputs:
        found.setdefault(output.text, output)
    return list(found.values())


def end_ids(network: Any) -> list[int]:
    """The tokens that end an output of the model."""
    ends = network.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _is_capped(network: Any, ids: torch.Tensor, limit: int) -> bool:
    # BART forces an end token at the limit: such an end token doesn't count.
    ends = end_ids(network)
    natural = ids[: limit - 1] if network.generation_config.forced_eos_token_id is not None else ids
    return len(ids) >= limit and not any(int(i) in ends for i in natural)


def generate_rows(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    rows: list[int],
    settings: GenerationSettings,
    process: tuple[int, int] = (0, 1),
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
) -> Iterator[tuple[int, Output]]:
    """(row, best output) of the batches that this process generates.

    `rows` is cut into batches in order; `process` is (rank, world size); `track` reports progress over the batches.
    """
    column = examples.columns["input_ids"]
    batches = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    for batch in track(batches[process[0] :: process[1]]):
        outputs = generate_texts(network, tokenizer, [column[row] for row in batch], settings)
        yield from ((row, best) for row, (best, *_) in zip(batch, outputs, strict=True))


def token_limit(network: Any, used: int, requested: int) -> int:
    """At most `requested` tokens, and no more than the positions left after `used` ones; at least 1."""
    from lmtrain.modeling.network import positions

    limit = positions(network)
    return max(min(requested, limit - used), 1) if limit else requested
