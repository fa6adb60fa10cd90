"""Denoising as for T5, BART and Pegasus: a text becomes a source with parts missing and the target that restores them.

    span corruption (Raffel et al., JMLR 2020)
        the <extra_id_0> on the <extra_id_1>  ->  <extra_id_0> cat sat <extra_id_1> mat <extra_id_2>
    infilling (Lewis et al., ACL 2020)
        shuffled sentences, spans replaced by <mask>  ->  the text
    gap sentences (Zhang et al., ICML 2020)
        whole sentences replaced by <mask_1>  ->  these sentences

The noise works on ids. The number of missing tokens and spans, and so the lengths of source and target, depend on the
length of the text alone. Which tokens are missing is random, a function of (seed, epoch, text) like the masks of mlm.
Gap sentences involve no randomness: the sentences most similar to the rest of the text are missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.config.data import PairData
from lmtrain.errors import InputError
from lmtrain.preprocessing.hashed_random import uniform
from lmtrain.preprocessing.tokenizing import special_token_ids
from lmtrain.preprocessing.train_tokenizer import SpecialTokens

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
"""(ids of the source, ids of the target)."""

Key = tuple[int, ...]

EVALUATION_KEY: Key = (0, 0)
"""The key of the noise at evaluation: the same for every seed, and never used in training."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))


def special_tokens_for(special_tokens: SpecialTokens, denoise: str) -> SpecialTokens:
    """`special_tokens` with those that a tokenizer trained for `denoise` needs in addition."""
    if denoise == "span-corruption":
        return replace(special_tokens, extra=SENTINELS)
    mask = {"infilling": {"mask_token": "<mask>"}, "gap-sentences": {"mask_token": "<mask_1>"}}
    return replace(special_tokens, tokens=special_tokens.tokens | mask.get(denoise, {}))


@dataclass(frozen=True)
class PairTemplate:
    """The ids of the special tokens (before, after) each source and each target."""

    source: tuple[list[int], list[int]]
    target: tuple[list[int], list[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairTemplate":
        before, after = special_token_ids(tokenizer, target=True)
        end = tokenizer.eos_token_id
        return cls(special_token_ids(tokenizer), (before, after if end is None or end in after else [*after, end]))

    def __call__(self, source: np.ndarray, target: np.ndarray) -> Pair:
        return _wrapped(self.source, source), _wrapped(self.target, target)

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of special tokens of a (source, target)."""
        return sum(map(len, self.source)), sum(map(len, self.target))


def _wrapped(special: tuple[list[int], list[int]], ids: np.ndarray) -> np.ndarray:
    before, after = special
    return np.concatenate([before, ids, after]).astype(np.int64)


class Noise(Protocol):
    """Random noise, drawn anew in every epoch."""

    @property
    def density(self) -> float:
        """The share of missing tokens."""

    @property
    def needs_sentences(self) -> bool:
        """Whether the call needs to know where sentences begin."""

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([texts] tokens of the source, [texts] tokens of the target), both monotonic in `tokens` [texts]."""

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        """Noise for the `ids` [tokens] of text `number`. `starts` [tokens] bool: whether a sentence begins."""


def noise_for(tokenizer: PreTrainedTokenizerBase, data: PairData) -> "Noise | GapSentences":
    """The noise of --denoise. Raises InputError if the tokenizer lacks the special tokens that it needs."""
    template, (density, mean) = PairTemplate.of(tokenizer), data.noise
    if data.denoise == "span-corruption":
        return SpanCorruption(density, mean, _sentinels(tokenizer), template)
    vocabulary = tokenizer.get_vocab()
    mask = vocabulary.get("<mask_1>") if data.denoise == "gap-sentences" else None
    mask = tokenizer.mask_token_id if mask is None else mask
    if mask is None:
        raise InputError(
            f"--denoise {data.denoise}: the tokenizer has no mask token; train one with --from-scratch "
            "--tokenizer unigram:8000, or use --denoise span-corruption"
        )
    if not tokenizer.is_fast:
        raise InputError(f"--denoise {data.denoise}: needs a fast tokenizer, which reports where its tokens begin")
    if data.denoise == "infilling":
        return Infilling(density, mean, mask, template)
    return GapSentences(density, mask, template)


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The ids of <extra_id_0>, <extra_id_1>, …; mT5 has them as pieces of its vocabulary."""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary or f"▁{name}" in vocabulary:
        found.append(vocabulary[name] if name in vocabulary else vocabulary[f"▁{name}"])
    if len(found) < 2:
        raise InputError(
            "--denoise span-corruption: the tokenizer has no <extra_id_0>, <extra_id_1>, … as T5's has; train one "
            "with --from-scratch --tokenizer unigram:8000"
        )
    return np.array(found)


# --- span corruption -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SpanCorruption:
    """T5's random_spans_noise_mask: kept and missing spans alternate, with random lengths.

    Unlike T5's, a text may begin with a missing span or end with a kept one. Otherwise a short text with a single span
    would lose its end in every epoch.
    """

    density: float
    mean: float
    sentinels: np.ndarray
    template: PairTemplate
    needs_sentences = False

    def counts(self, tokens: Any) -> tuple[Any, Any]:
        """(missing tokens, spans) of texts of so many tokens. The only token of a text is missing."""
        missing = np.clip(np.round(tokens * self.density), 1, np.maximum(tokens - 1, 1)).astype(np.int64)
        spans = np.round(missing / self.mean).astype(np.int64)
        return missing, np.clip(spans, 1, np.maximum(np.minimum(missing, tokens - missing), 1))

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing, spans = self.counts(tokens)
        source, target = self.template.lengths
        return tokens - missing + spans + source, missing + spans + 1 + target

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        missing, spans = map(int, self.counts(len(ids)))
        if spans >= len(self.sentinels):
            raise InputError(
                f"--denoise span-corruption: {spans} spans and the end need {spans + 1} sentinels, the tokenizer has "
                f"{len(self.sentinels)}; use a longer --mean-span-length or a shorter --max-source-length"
            )
        gaps = _cut(missing, spans, _draw(key, 0, number, missing - 1))
        kept = _cut(len(ids) - missing + 2, spans + 1, _draw(key, 1, number, len(ids) - missing + 1))
        kept[[0, -1]] -= 1
        alternating = np.stack([kept, np.append(gaps, 0)], 1).reshape(-1)
        is_missing = np.repeat(np.tile([False, True], spans + 1), alternating)
        source = np.insert(ids[~is_missing].astype(np.int64), np.cumsum(kept)[:-1], self.sentinels[:spans])
        target = np.insert(ids[is_missing].astype(np.int64), np.cumsum(gaps) - gaps, self.sentinels[:spans])
        return self.template(source, np.append(target, self.sentinels[spans]))


def _draw(key: Key, draw: int, number: int, count: int) -> np.ndarray:
    """[count] random numbers in [0, 1) for text `number`; `draw` distinguishes the draws of a text."""
    positions = np.arange(max(count, 0))
    return uniform((*key, draw), np.full_like(positions, number), positions)


def _cut(total: int, parts: int, random: np.ndarray) -> np.ndarray:
    """[parts] the lengths, none 0, into which `total` items are cut. `random` [total - 1] ranks the possible cuts."""
    borders = np.sort(np.argsort(random, kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


# --- infilling -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Infilling:
    """BART's noise: sentences in random order, and spans of Poisson-distributed lengths replaced by one mask each.

    A span may be empty; its mask is then inserted. Poisson variables with a given sum are multinomial, so the lengths
    are drawn by assigning each missing token to a random mask. Masks are never adjacent.
    """

    density: float
    mean: float
    mask: int
    template: PairTemplate
    needs_sentences = True

    def counts(self, tokens: Any) -> tuple[Any, Any]:
        """(missing tokens, masks) of texts of so many tokens."""
        missing = np.clip(np.round(tokens * self.density), 1, tokens).astype(np.int64)
        return missing, np.clip(np.round(missing / self.mean).astype(np.int64), 1, tokens - missing + 1)

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing, masks = self.counts(tokens)
        source, target = self.template.lengths
        return tokens - missing + masks + source, tokens + target

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        assert starts is not None
        missing, masks = map(int, self.counts(len(ids)))
        sentences = np.split(ids, np.flatnonzero(starts[1:]) + 1)
        order = np.argsort(_draw(key, 0, number, len(sentences)), kind="stable")
        shuffled = np.concatenate([sentences[sentence] for sentence in order])
        lengths = np.bincount((_draw(key, 1, number, missing) * masks).astype(np.int64), minlength=masks)
        left = len(ids) - missing
        positions = np.sort(np.argsort(_draw(key, 2, number, left + 1), kind="stable")[:masks])
        kept = np.diff(positions, prepend=0, append=left)
        alternating = np.stack([kept, np.append(lengths, 0)], 1).reshape(-1)
        is_missing = np.repeat(np.tile([False, True], masks + 1), alternating)
        return self.template(np.insert(shuffled[~is_missing].astype(np.int64), positions, self.mask), ids)


# --- gap sentences ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GapSentences:
    """Pegasus's noise: the target is the share of a text's sentences that are most similar to the rest of the text."""

    density: float
    mask: int
    template: PairTemplate
    needs_sentences = True

    def __call__(self, ids: np.ndarray, starts: np.ndarray, most: int) -> Pair:
        """Noise for the `ids` [tokens] of a text; the target has at most `most` tokens, special tokens included."""
        gaps = gap_sentences(ids, starts, self.density, most - self.template.lengths[1])
        is_missing = np.zeros(len(ids), bool)
        for start, end in gaps:
            is_missing[start:end] = True
        source = np.insert(ids.astype(np.int64), [start for start, _ in gaps], self.mask)
        shift = np.arange(1, len(gaps) + 1)
        out = np.zeros(len(source), bool)
        for (start, end), masks in zip(gaps, shift.tolist(), strict=True):
            out[start + masks : end + masks] = True
        return self.template(source[~out], ids[is_missing])


def gap_sentences(ids: np.ndarray, starts: np.ndarray, share: float, most: int) -> list[tuple[int, int]]:
    """(start, end) of the `share` of sentences with the best ROUGE-1 F1 against the rest of the text, in text order.

    Sentences are scored independently (Pegasus's Ind-Orig). A sentence and the rest add up to the whole text, so F1
    is proportional to the number of tokens they have in common, which is compared instead. The sentences have at
    most `most` tokens together; if none is that short, the first `most` tokens of the best one are taken.
    """
    begins = np.append(0, np.flatnonzero(starts[1:]) + 1)
    ends = np.append(begins[1:], len(ids))
    known, token = np.unique(ids, return_inverse=True)
    sentence = np.repeat(np.arange(len(begins)), ends - begins)
    pairs, counts = np.unique(sentence * len(known) + token, return_counts=True)
    of, entry = np.divmod(pairs, len(known))
    common = np.bincount(of, np.minimum(counts, np.bincount(token)[entry] - counts), minlength=len(begins))
    best = np.argsort(-common, kind="stable").tolist()
    wanted = min(
        max(round(share * len(begins)), 1), max(len(begins) - 1, 1)
    )  # at least one sentence stays in the source
    room = most
    chosen: list[tuple[int, int]] = []
    for number in best:
        length = int(ends[number] - begins[number])
        if len(chosen) < wanted and length <= room:
            chosen.append((int(begins[number]), int(ends[number])))
            room -= length
    return sorted(chosen) or [(int(begins[best[0]]), int(begins[best[0]]) + most)]


# --- limits ----------------------------------------------------------------------------------------------------------
def longest_text(
    sizes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], source: int, target: int, density: float
) -> int:
    """The most tokens of a text whose source and target stay within these lengths; 0 if even one is too many."""
    tokens = np.arange(1, min(int((source + 2) / (1 - density)), source + target) + 2)
    fits = [size <= most for size, most in zip(sizes(tokens), (source, target), strict=True)]
    return int(np.logical_and(*fits).sum())
