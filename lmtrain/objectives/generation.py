"""Texts that a model writes, by beam search, sampling or greedily."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from lmtrain.modeling.loss import decoder_inputs
from lmtrain.preprocessing.batch import pad_id, padded
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.tokenizing import special_token_ids
from lmtrain.runtime import signals
from lmtrain.runtime.memory import is_out_of_memory

COMPLETION_TOKENS = 40

ROWS_AT_ONCE = 16
"""Rows of a generated batch. Fixed, and cut from the data alone: in another batch a sum of floats comes out otherwise
in its last digit, which can turn a close choice of a word and with it the whole output. So texts, and the metrics of
them, are the same for every --eval-batch-size and number of processes."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate; what is None is as the model's own generation settings say."""

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
    """A text that was generated; `capped` if it was cut off rather than ended, `score` as beam search ranks it."""

    text: str
    capped: bool
    score: float | None = None


class Interruptible(StoppingCriteria):
    """Ends nothing by itself; a signal is heard at every token."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        signals.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    """Text of ids without special tokens; ids beyond the vocabulary are left out rather than crash."""
    return tokenizer.decode([int(i) for i in ids if 0 <= int(i) < len(tokenizer)], skip_special_tokens=True)


def generation_arguments(
    network: Any, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings
) -> dict[str, Any]:
    """The settings as transformers' generate takes them; for an encoder-decoder with the start that it was trained on.

    The start is what the decoder is given in training: the labels moved on by one, so the token that comes in front
    and, where a target begins with one (a language of mBART-50, M2M100 or NLLB, BART's <s>), the first label.
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
    network: Any, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Any], settings: GenerationSettings, **more: Any
) -> list[list[Output]]:
    """Of each source (ids [length]) what the model writes, the best first and no text twice.

    A decoder goes on from its source and needs sources of one length; an encoder-decoder takes any. Out of memory,
    the sources are taken in two halves.
    """
    pad = pad_id(tokenizer)
    limit = room_for(network, 0 if network.config.is_encoder_decoder else len(sources[0]), settings.max_new_tokens)
    arguments = generation_arguments(network, tokenizer, settings) | more | {"max_new_tokens": limit}
    generated = None
    try:
        generated = network.generate(
            input_ids=padded(sources, pad).to(network.device),
            attention_mask=padded([np.ones(len(ids)) for ids in sources], 0).to(network.device),
            pad_token_id=pad, use_cache=True, return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([Interruptible()]), **arguments,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if len(sources) == 1 or not is_out_of_memory(error):
            raise
    if generated is None:
        half = len(sources) // 2
        parts = sources[:half], sources[half:]
        return [texts for part in parts for texts in generate_texts(network, tokenizer, part, settings, **more)]
    skipped = 1 if network.config.is_encoder_decoder else len(sources[0])
    scores = getattr(generated, "sequences_scores", None)
    each = settings.num_return_sequences
    made = [
        Output(decode(tokenizer, ids[skipped:]), _is_capped(network, ids[skipped:], limit),
               None if scores is None else float(scores[number]))
        for number, ids in enumerate(generated.sequences)
    ]  # fmt: skip
    return [_distinct(made[start : start + each]) for start in range(0, len(made), each)]


def _distinct(texts: Iterable[Output]) -> list[Output]:
    found: dict[str, Output] = {}
    for output in texts:
        found.setdefault(output.text, output)
    return list(found.values())


def _is_capped(network: Any, ids: torch.Tensor, limit: int) -> bool:
    config = network.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # A model may be made to end at the limit (BART): an end there is no end of its own.
    natural = ids[: limit - 1] if config.forced_eos_token_id is not None else ids
    return len(ids) >= limit and not any(int(i) in ends for i in natural)


def generate_rows(
    network: Any, tokenizer: PreTrainedTokenizerBase, examples: Examples, rows: list[int], settings: GenerationSettings,
    process: tuple[int, int] = (0, 1), track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Iterator[tuple[int, Output]]:  # fmt: skip
    """(row, output) of this process's share of `rows`, which are in the order that batches are cut from."""
    column = examples.columns["input_ids"]
    batches = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    for chosen in track(batches[process[0] :: process[1]]):
        written = generate_texts(network, tokenizer, [column[row] for row in chosen], settings)
        yield from ((row, texts[0]) for row, texts in zip(chosen, written, strict=True))


def room_for(network: Any, used: int, wanted: int) -> int:
    """How many of the `wanted` tokens the model has positions for behind `used` ones; at least one."""
    from lmtrain.modeling.network import positions

    limit = positions(network)
    return max(min(wanted, limit - used), 1) if limit else wanted
