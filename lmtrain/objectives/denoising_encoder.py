"""Token ids for denoising: plain text becomes pairs of a noised source and a target (T5, BART, Pegasus)."""

from dataclasses import replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from lmtrain.config.data import PairData
from lmtrain.data.rows import Rows
from lmtrain.errors import UsageError
from lmtrain.objectives.generation import decode
from lmtrain.preprocessing import denoising
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.documents import (
    TokenizedDocuments,
    fit_document,
    split_into_rows,
    start_ledgers,
)
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.tokenizing import ids_and_sentences, ids_of

SOURCE, TARGET = 512, 256
"""Default limits in tokens of a source and of a target of gap sentences, as in T5, BART and Pegasus."""


def encode_for_denoising(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: PairData, limits: Limits, measure: bool
) -> Examples:
    """Column `input_ids`: texts cut so that the noised pair fits; `sentence_starts` (bool) where the noise needs them.

    Where noise is fixed (gap sentences, and with `measure`), the columns are `input_ids` and `labels` as for pairs.
    """
    noise = denoising.noise_for(tokenizer, data)
    gaps = isinstance(noise, denoising.GapSentences)
    source = limits.at_most("max_source_length", data.max_source_length, SOURCE)
    target = limits.at_most("max_target_length", data.max_target_length, TARGET if gaps else None)
    if isinstance(noise, denoising.GapSentences):
        room, least = source - noise.template.lengths[0], target > noise.template.lengths[1]
        room = room if least else 0
    else:
        room = denoising.longest_text(noise.sizes, source, target, noise.density)
    if room < 1:
        raise UsageError(f"--max-source-length {source} and --max-target-length {target} leave no room for a text")
    ledgers, policy = start_ledgers(rows), data.on_long or "split"
    texts = TokenizedDocuments(rows, tokenizer, "sentence_starts" if noise.needs_sentences else None)
    for parts, document in texts.encoded(ids_and_sentences if noise.needs_sentences else ids_of):
        texts.begin(document)
        if noise.needs_sentences:
            texts.take(parts)
        else:
            texts.ids.extend(chain.from_iterable(parts))
        texts.end(document, fit_document(ledgers, texts.new_tokens, room, rows, document, policy))
    columns = {name: column.done() for name, column in texts.columns.items()}
    examples = split_into_rows(texts, columns, room, ledgers, limits)
    ids, starts = examples.columns["input_ids"], examples.columns.get("sentence_starts")
    if measure or isinstance(noise, denoising.GapSentences):
        pairs = _fixed_pairs(noise, ids, starts, target)
        columns = {"input_ids": Ragged.of([s for s, _ in pairs]), "labels": Ragged.of([t for _, t in pairs])}
        examples = replace(examples, columns=columns, texts=_decoded_pairs(tokenizer, pairs) if measure else None)
    else:
        examples = replace(examples, read=noise.sizes(ids.lengths))
    longest = [max(int(lengths.max(initial=2)), 2) for lengths in examples.lengths_by_column()]
    limits = limits.resolve("max_source_length", data.max_source_length, longest[0])
    return replace(examples, limits=limits.resolve("max_target_length", data.max_target_length, longest[1]))


def _fixed_pairs(
    noise: denoising.Noise | denoising.GapSentences, ids: Ragged, starts: Ragged | None, longest_target: int
) -> list[denoising.Pair]:
    """Source and target of each text, independent of seed and epoch."""
    if isinstance(noise, denoising.GapSentences):
        assert starts is not None
        return [noise(text, own, longest_target) for text, own in zip(ids, starts, strict=True)]
    marks = starts or [None] * len(ids)
    numbered = enumerate(zip(ids, marks, strict=True))
    return [noise(text, own, number, denoising.EVALUATION_KEY) for number, (text, own) in numbered]


def _decoded_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[denoising.Pair]) -> list[tuple[str, ...]]:
    """Texts of each pair: the source with all special tokens, the target as an output is read."""
    return [(str(tokenizer.decode(source.tolist())), decode(tokenizer, target)) for source, target in pairs]
