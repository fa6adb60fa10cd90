"""Plain text -> a source in which something is missing, and the target that has it: how T5, BART and Pegasus were trained.

    span corruption (Raffel et al., JMLR 2020)   the <extra_id_0> on the <extra_id_1>  ->  <extra_id_0> cat sat <extra_id_1> mat <extra_id_2>
    infilling (Lewis et al., ACL 2020)           sentences in another order, spans in each <mask>  ->  the text
    gap sentences (Zhang et al., ICML 2020)      <mask_1> in place of whole sentences  ->  the sentences

All is done on ids, nothing is decoded in between. How many tokens are missing, and in how many spans, follows from the
length of the text alone, so that the lengths of source and target do too; where they are missing is chance, which is a
function of (seed, epoch, text), as masks are. Of gap sentences nothing is: they are the ones that say most of the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import InputError
from lmtrain.preprocessing.hashed_random import uniform
from lmtrain.preprocessing.tokenizing import special_token_ids
from lmtrain.preprocessing.train_tokenizer import SpecialTokens

Pair = tuple[np.ndarray, np.ndarray]
"""The ids of the source and of the target."""

Key = tuple[int, ...]

EVALUATION: Key = (0, 0)
"""What noise at evaluation is a function of, beside the text's number: the same for every seed, none of training's."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))


def special_tokens_for(frame: SpecialTokens, denoise: str) -> SpecialTokens:
    """The special tokens of a tokenizer that is trained for it."""
    if denoise == "span-corruption":
        return replace(frame, extra=SENTINELS)
    mask = {"infilling": {"mask_token": "<mask>"}, "gap-sentences": {"mask_token": "<mask_1>"}}
    return replace(frame, tokens=frame.tokens | mask.get(denoise, {}))


@dataclass(frozen=True)
class Around:
    """What stands before and behind every source and every target."""

    source: tuple[list[int], list[int]]
    target: tuple[list[int], list[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Around":
        before, after = special_token_ids(tokenizer, target=True)
        end = tokenizer.eos_token_id
        return cls(special_token_ids(tokenizer), (before, after if end is None or end in after else [*after, end]))

    def __call__(self, source: np.ndarray, target: np.ndarray) -> Pair:
        sides = ((self.source, source), (self.target, target))
        around = [np.concatenate([before, ids, after]).astype(np.int64) for (before, after), ids in sides]
        return around[0], around[1]

    @property
    def lengths(self) -> tuple[int, int]:
        return sum(map(len, self.source)), sum(map(len, self.target))


class Noise(Protocol):
    in_sentences: bool
    """Whether it has to know where sentences begin."""

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([texts] tokens of the source, [texts] of the target) of texts of so many tokens; more of more tokens."""

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        """`starts` [tokens]: whether a sentence begins; `number` of the text."""


def noise(tokenizer: PreTrainedTokenizerBase, data: Any) -> "Noise | GapSentences":
    """What --denoise asks for. Raises InputError for a tokenizer without the tokens that it needs."""
    around, (density, mean) = Around.of(tokenizer), data.noise
    if data.denoise == "span-corruption":
        return SpanCorruption(density, mean, _sentinels(tokenizer), around)
    vocabulary = tokenizer.get_vocab()
    mask = vocabulary.get("<mask_1>") if data.denoise == "gap-sentences" else None
    mask = tokenizer.mask_token_id if mask is None else mask
    if mask is None:
        raise InputError(f"--denoise {data.denoise}: the tokenizer has no mask token; train one with --from-scratch "
                         "--tokenizer unigram:8000, or take --denoise span-corruption")  # fmt: skip
    if not tokenizer.is_fast:
        raise InputError(f"--denoise {data.denoise}: needs a fast tokenizer, which tells where its tokens begin")
    return (
        Infilling(density, mean, mask, around) if data.denoise == "infilling" else GapSentences(density, mask, around)
    )


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """<extra_id_0>, <extra_id_1>, … as far as the tokenizer has them; mT5's are pieces of its vocabulary."""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary or f"▁{name}" in vocabulary:
        found.append(vocabulary.get(name, vocabulary.get(f"▁{name}")))
    if len(found) < 2:
        raise InputError("--denoise span-corruption: the tokenizer has no <extra_id_0>, <extra_id_1>, … as T5's has; train one "
                         "with --from-scratch --tokenizer unigram:8000")  # fmt: skip
    return np.array(found)


# --- span corruption -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SpanCorruption:
    """T5's random_spans_noise_mask: kept and missing spans take turns, cut by chance.

    But while T5's texts always end with a missing one, here what is kept may also come last, or not come first: of a short
    text, which has one span, its end would else be missing in every epoch.
    """

    density: float
    mean: float
    sentinels: np.ndarray
    around: Around
    in_sentences = False

    def counts(self, tokens: Any) -> tuple[Any, Any]:
        """(tokens that are missing, in how many spans); of a text of one token this one."""
        missing = np.clip(np.round(tokens * self.density), 1, np.maximum(tokens - 1, 1)).astype(np.int64)
        spans = np.round(missing / self.mean).astype(np.int64)
        return missing, np.clip(spans, 1, np.maximum(np.minimum(missing, tokens - missing), 1))

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing, spans = self.counts(tokens)
        source, target = self.around.lengths
        return tokens - missing + spans + source, missing + spans + 1 + target

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        missing, spans = map(int, self.counts(len(ids)))
        if spans >= len(self.sentinels):
            raise InputError(f"--denoise span-corruption: {spans} spans and the end need {spans + 1} sentinels, the tokenizer "
                             f"has {len(self.sentinels)}; use a longer --mean-span-length or a shorter --max-source-length")  # fmt: skip
        gaps = _cut(missing, spans, _draw(key, 0, number, missing - 1))
        kept = _cut(len(ids) - missing + 2, spans + 1, _draw(key, 1, number, len(ids) - missing + 1))
        kept[[0, -1]] -= 1
        turns = np.stack([kept, np.append(gaps, 0)], 1).reshape(-1)
        is_missing = np.repeat(np.tile([False, True], spans + 1), turns)
        source = np.insert(ids[~is_missing].astype(np.int64), np.cumsum(kept)[:-1], self.sentinels[:spans])
        target = np.insert(ids[is_missing].astype(np.int64), np.cumsum(gaps) - gaps, self.sentinels[:spans])
        return self.around(source, np.append(target, self.sentinels[spans]))


def _draw(key: Key, draw: int, number: int, count: int) -> np.ndarray:
    positions = np.arange(max(count, 0))
    return uniform((*key, draw), np.full_like(positions, number), positions)


def _cut(total: int, parts: int, random: np.ndarray) -> np.ndarray:
    """The lengths of `parts` parts of `total` things, none empty; `random` [total - 1] is of the places between them."""
    borders = np.sort(np.argsort(random, kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


# --- infilling -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Infilling:
    """BART's: the sentences in any order, and spans of Poisson's lengths replaced by one mask each, also those of none.

    Lengths by Poisson's law of which only the sum is known fall as so many balls into so many boxes: so they are drawn.
    No two masks touch.
    """

    density: float
    mean: float
    mask: int
    around: Around
    in_sentences = True

    def counts(self, tokens: Any) -> tuple[Any, Any]:
        """(tokens that are missing, masks)."""
        missing = np.clip(np.round(tokens * self.density), 1, tokens).astype(np.int64)
        return missing, np.clip(np.round(missing / self.mean).astype(np.int64), 1, tokens - missing + 1)

    def sizes(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing, masks = self.counts(tokens)
        source, target = self.around.lengths
        return tokens - missing + masks + source, tokens + target

    def __call__(self, ids: np.ndarray, starts: np.ndarray | None, number: int, key: Key) -> Pair:
        assert starts is not None
        missing, masks = map(int, self.counts(len(ids)))
        sentences = np.split(ids, np.flatnonzero(starts[1:]) + 1)
        order = np.argsort(_draw(key, 0, number, len(sentences)), kind="stable")
        shuffled = np.concatenate([sentences[sentence] for sentence in order])
        lengths = np.bincount((_draw(key, 1, number, missing) * masks).astype(np.int64), minlength=masks)
        left = len(ids) - missing
        places = np.sort(np.argsort(_draw(key, 2, number, left + 1), kind="stable")[:masks])
        kept = np.diff(places, prepend=0, append=left)
        turns = np.stack([kept, np.append(lengths, 0)], 1).reshape(-1)
        is_missing = np.repeat(np.tile([False, True], masks + 1), turns)
        return self.around(np.insert(shuffled[~is_missing].astype(np.int64), places, self.mask), ids)


# --- gap sentences ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GapSentences:
    """Pegasus's: of every text a share of the sentences, those that say most of the rest of it, are to be written."""

    density: float
    mask: int
    around: Around
    in_sentences = True

    def __call__(self, ids: np.ndarray, starts: np.ndarray, most: int) -> Pair:
        """`most` tokens of the target, all told."""
        gaps = gap_sentences(ids, starts, self.density, most - self.around.lengths[1])
        is_missing = np.zeros(len(ids), bool)
        for start, end in gaps:
            is_missing[start:end] = True
        source = np.insert(ids.astype(np.int64), [start for start, _ in gaps], self.mask)
        shift = np.arange(1, len(gaps) + 1)
        out = np.zeros(len(source), bool)
        for (start, end), masks in zip(gaps, shift.tolist(), strict=True):
            out[start + masks : end + masks] = True
        return self.around(source[~out], ids[is_missing])


def gap_sentences(ids: np.ndarray, starts: np.ndarray, share: float, most: int) -> list[tuple[int, int]]:
    """(start, end) of the share of sentences with the best ROUGE-1 F1 against the rest of the text, in their order.

    All sentences are compared with all the rest (Pegasus' Ind-Orig). As sentence and rest together are always the whole
    text, F1 is twice the number of tokens that they have in common divided by that of the text: so the tokens in common are
    compared, and no text is. Together they have `most` tokens; where not one sentence is that short, of the best its start.
    """
    begins = np.append(0, np.flatnonzero(starts[1:]) + 1)
    ends = np.append(begins[1:], len(ids))
    known, token = np.unique(ids, return_inverse=True)
    sentence = np.repeat(np.arange(len(begins)), ends - begins)
    pairs, counts = np.unique(sentence * len(known) + token, return_counts=True)
    of, entry = np.divmod(pairs, len(known))
    common = np.bincount(of, np.minimum(counts, np.bincount(token)[entry] - counts), minlength=len(begins))
    best = np.argsort(-common, kind="stable").tolist()
    wanted = min(max(round(share * len(begins)), 1), max(len(begins) - 1, 1))  # something is to be read
    room, chosen = most, []
    for number in best:
        length = int(ends[number] - begins[number])
        if len(chosen) < wanted and length <= room:
            chosen.append((int(begins[number]), int(ends[number])))
            room -= length
    return sorted(chosen) or [(int(begins[best[0]]), int(begins[best[0]]) + most)]


# --- how long a text may be ------------------------------------------------------------------------------------------
def longest(
    sizes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], source: int, target: int, density: float
) -> int:
    """The most tokens of a text whose source and target have so many at most; 0: not one."""
    tokens = np.arange(1, min(int((source + 2) / (1 - density)), source + target) + 2)
    fits = [size <= most for size, most in zip(sizes(tokens), (source, target), strict=True)]
    return int(np.logical_and(*fits).sum())
