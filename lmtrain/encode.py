"""Rows -> token ids, with every row and token entered in the ledger."""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain import chat, denoise
from lmtrain.dataset import Examples, Limits
from lmtrain.errors import InputError, UsageError, suggestion
from lmtrain.ledger import Ledger, chained
from lmtrain.packing import Growing, Ragged
from lmtrain.recipe import TextData
from lmtrain.sources import Rows
from lmtrain.tokenizer import framing, ids_and_bytes, ids_and_sentences, ids_and_words, ids_of

Encode = Callable[[Rows, PreTrainedTokenizerBase, Any, Limits, bool], Examples]


def _start(rows: Rows) -> tuple[Ledger, ...]:
    """The ledgers of the rows' sources, with what is known before anything is tokenised."""
    ledgers = tuple(replace(ledger) for ledger in rows.ledgers)
    for ledger, usable in zip(ledgers, rows.per_source(), strict=True):
        ledger.rows_read = usable + ledger.rows_empty + ledger.rows_bad + ledger.rows_dropped
    return ledgers


def _finish(
    columns: dict[str, Ragged], ledgers: tuple[Ledger, ...], rows: Rows, origins: Any, **more: Any
) -> Examples:
    """`origins` [rows of the columns]: which row of the data each comes from."""
    for ledger in ledgers:
        assert ledger.balances(), f"the ledger does not balance: {ledger}"
    if not len(columns["input_ids"]) and not rows.part:
        dropped = sum(ledger.rows_dropped for ledger in ledgers)
        raise InputError(f"{rows.place(0)} and after: no row is left ({dropped} dropped as too long or with nothing "
                         "to train)")  # fmt: skip
    sources = _sources(rows, np.asarray(origins, np.int64)) if len(ledgers) > 1 else None
    fingerprint = "" if rows.part else chained("", rows.contents())  # a stream goes on with the one of the part before
    return Examples(rows.kind, columns, ledgers, fingerprint, sources, **more)


# --- causal ----------------------------------------------------------------------------------------------------------


def causal(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Columns `input_ids`; `trained` (bool) where not all of them are; with `measure`, `num_bytes` of each token."""
    return {"text": _causal_text, "prompt": _prompts, "messages": _chats}[rows.kind](
        rows, tokenizer, data, limits, measure
    )


def _causal_text(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool
) -> Examples:
    length = limits.of("max_length", data.max_length)
    before, after = marks(tokenizer)
    ledgers = _start(rows)
    stride = data.stride if measure else None  # type: ignore[attr-defined]
    if stride and stride >= length:
        raise UsageError(
            f"--stride {stride}: has to be less than --max-length {length}, or tokens would have nothing before them"
        )
    sized = measure and tokenizer.is_fast
    texts, sizes = _Texts(rows, tokenizer), Growing()
    encoded = (ids_and_bytes if sized else ids_of)(tokenizer, rows.values)
    for parts, document in _documents(rows, encoded):
        start = [] if texts.continues(document) else before
        end = after if rows.ends(document[-1]) else []
        texts.begin(document, start)
        if sized:
            sizes.extend([0] * len(start))
            for tokens, bytes_of in parts:
                texts.ids.extend(tokens)
                sizes.extend(bytes_of)
            sizes.extend([0] * len(end))
        else:
            texts.ids.extend(chain.from_iterable(parts))
        texts.ids.extend(end)
        kept = texts.end(document, lambda tokens, at=document: _fit(ledgers, tokens, length, rows, at, data))
        if sized:
            sizes.close(kept)
    columns = {"input_ids": texts.ids.done(), **({"num_bytes": sizes.done()} if sized else {})}
    if stride:
        windows = {name: column.windows(length, stride) for name, column in columns.items()}
        shown = {name: window for name, (window, _) in windows.items()} | {"trained": windows["input_ids"][1]}
        return _finish(shown, ledgers, rows, np.zeros(len(shown["input_ids"]), int))
    return _in_pieces(columns, length, ledgers, rows, texts, data.blocks)


class _Texts:
    """The ids of documents, one after another, in the making; those that a stream carried over come first.

    With `flag`, a column of that name says yes or no of each of them.
    """

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, flag: str | None = None):
        self.rows, self.origins = rows, array("q")
        self.ids = Growing("H" if len(tokenizer) <= 1 << 16 else "i")
        self.columns = {"input_ids": self.ids, **({flag: Growing("b")} if flag else {})}
        self.flags = self.columns.get(flag or "")
        self.before, self.last = 0, -1  # ids of the document in the making that were carried over; where it starts
        if rows.carried and not rows.continues:
            for name, column in self.columns.items():
                column.extend(rows.carried[name])
                column.close(len(rows.carried[name]))
            self.origins.append(0)

    def continues(self, document: range) -> bool:
        """Whether a document began in the part of the stream before."""
        return self.rows.continues and document.start == 0

    def unfinished(self) -> bool:
        """Whether there are ids of the last document, which goes on."""
        return self.last == self.origins[-1]

    def begin(self, document: range, start: Sequence[int] = ()) -> None:
        """Begin a document with its first ids, which is the first thing new in it."""
        self.last = document.start
        if self.continues(document):
            for name, column in self.columns.items():
                column.extend(self.rows.carried.get(name, ()))
        self.before = self.ids.begun
        self.ids.extend(start)

    def take(self, parts: Iterator[tuple[list[int], list[bool]]]) -> None:
        """The ids of a document with their flags."""
        assert self.flags is not None
        for ids, flags in parts:
            self.ids.extend(ids)
            self.flags.extend(flags)

    def end(self, document: range, fit: Callable[[int], int]) -> int:
        """End a document of so many new tokens, of which `fit` says how many are kept."""
        kept = fit(self.ids.begun - self.before)
        for column in self.columns.values():
            column.close(self.before + kept)
        if self.before + kept:
            self.origins.append(document.start)
        return kept


def _in_pieces(
    columns: dict[str, Ragged], length: int, ledgers: tuple[Ledger, ...], rows: Rows, texts: _Texts, blocks: bool,
    frame: tuple[list[int], list[int]] = ([], []),
) -> Examples:  # fmt: skip
    """Documents cut every `length` tokens; as `blocks`, those of a source one after another before they are cut.

    The last piece of a part of a stream is its rest, where its text goes on or where blocks are to be filled.
    """
    ids, origins = columns["input_ids"], np.array(texts.origins, np.int64)
    if blocks:
        sources = _sources(rows, origins)
        first = np.flatnonzero(np.diff(sources, prepend=-1))
        columns = {name: column.joined(first) for name, column in columns.items()}
        ids, origins = columns["input_ids"], origins[first]
    origins = np.repeat(origins, ids.pieces(length))
    cut = {name: column.split(length) for name, column in columns.items()}
    rest: dict[str, list[int]] = {}
    if len(origins) and (rows.open if blocks else rows.goes_on() and texts.unfinished()):
        rest = {name: column[len(origins) - 1].tolist() for name, column in cut.items()}
        origins = origins[:-1]
        cut = {name: column.first(len(origins)) for name, column in cut.items()}
    if any(frame):
        around = {"input_ids": frame} | {
            name: tuple([1] * len(part) for part in frame) for name in cut if name != "input_ids"
        }
        cut = {name: column.framed(*around[name]) for name, column in cut.items()}
    return _finish(cut, ledgers, rows, origins, rest=rest)


def _sources(rows: Rows, origins: np.ndarray) -> np.ndarray:
    """Of each of some rows of the data the source that it comes from."""
    if not rows.values:  # what a stream carried over is all that there is
        return np.zeros(len(origins), np.int64)
    of_table = np.array([table.source for table in rows.tables])
    return of_table[np.asarray(rows.table_of)[origins]]


def marks(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """(begin, end) marks of a document: what the tokenizer adds, and always an end token, so that stopping is learnt."""
    before, after = framing(tokenizer)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in after:
        after = [*after, tokenizer.eos_token_id]
    return before, after


def _documents(rows: Rows, encoded: Iterator[Any]) -> Iterator[tuple[Iterator[Any], range]]:
    """(what each of its rows was `encoded` to, to be taken at once; the rows) of each document.

    Every row is tokenised on its own, and handed on before the next is: a document may be larger than memory likes.
    """
    for document in rows.documents():
        yield islice(encoded, len(document)), document


def _fit(ledgers: tuple[Ledger, ...], tokens: int, length: int, rows: Rows, document: range, data: TextData) -> int:
    """How many of a document's tokens are kept, as --on-long says; entered in the ledger."""
    policy = data.on_long or "split"
    ledger = ledgers[rows.source(document.start)]
    if rows.table_of[document.start] in rows.last and policy != "split":
        raise UsageError(
            f"--on-long {policy} is for rows; a running text has none (--sample-by line makes its lines rows)"
        )
    if tokens <= length or policy == "split":
        ledger.use(tokens, rows=rows.count(document))
        return tokens
    return _cut(ledger, tokens, length, rows.place(document[0]), policy)


def _cut(ledger: Ledger, tokens: int, length: int, place: str, policy: str) -> int:
    if policy == "error":
        raise InputError(f"{place}: {tokens} tokens, the limit is {length}; --on-long says what to do with such rows")
    if policy == "drop":
        ledger.drop(tokens)
        return 0
    ledger.use(tokens, truncated=tokens - length)
    return length


def _prompts(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool
) -> Examples:
    """Prompt and completion are tokenised apart, as they will be when the model is asked; a line break parts them."""
    before, after = marks(tokenizer)
    prompts = [prompt if answer[:1].isspace() else asking(prompt) for prompt, answer in rows.values]
    answers = [answer for _, answer in rows.values]
    pairs = zip(ids_of(tokenizer, prompts), ids_of(tokenizer, answers), strict=True)

    def encoded() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for prompt, answer in pairs:
            ids = np.concatenate([before, prompt, answer, after])
            yield ids, np.arange(len(ids)) >= len(before) + len(prompt)

    return _partly_trained(rows, encoded(), data, limits)


def asking(prompt: str) -> str:
    """A prompt as it stands before its completion."""
    return prompt if prompt[-1:].isspace() else prompt + "\n"


def _chats(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: TextData, limits: Limits, measure: bool) -> Examples:
    encoded = (chat.encode(tokenizer, messages, rows.place(i)) for i, messages in enumerate(rows.values))
    return _partly_trained(rows, encoded, data, limits)


def _partly_trained(rows: Rows, encoded: Iterator[Any], data: TextData, limits: Limits) -> Examples:
    """One example a row; a row of which nothing trained is left is dropped, in the ledger."""
    if data.stride:  # type: ignore[attr-defined]
        raise UsageError("--stride is for plain text; a prompt or a chat is scored as one row")
    length = limits.of("max_length", data.max_length)
    policy = data.on_long or "truncate"
    if policy == "split":
        raise UsageError("--on-long split is for plain text; a prompt or a chat is cut with truncate, drop or error")
    ledgers = _start(rows)
    ids, trained, origins = [], [], []
    for index, (tokens, mask) in enumerate(encoded):
        ledger = ledgers[rows.source(index)]
        mask = np.ones_like(mask) if data.train_on_prompt else mask  # type: ignore[attr-defined]
        untrained = not mask[1 : min(length, len(tokens))].any()
        if untrained and not (policy == "error" and len(tokens) > length):
            ledger.drop(len(tokens))
            continue
        if len(tokens) <= length:
            kept = len(tokens)
            ledger.use(kept)
        else:
            kept = _cut(ledger, len(tokens), length, rows.place(index), policy)
        if kept:
            ids.append(tokens[:kept])
            trained.append(mask[:kept])
            origins.append(index)
    columns = {"input_ids": Ragged.of(ids), "trained": Ragged.of(trained, np.bool_)}
    return _finish(columns, ledgers, rows, origins)


# --- masked ----------------------------------------------------------------------------------------------------------


def masked(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Column `input_ids`, every row framed as the tokenizer frames a text ([CLS] … [SEP]).

    Where words are masked, `word_starts` (bool): whether a token begins one, or is none of the text.
    """
    length = limits.of("max_length", data.max_length)
    before, after = framing(tokenizer)
    room = length - len(before) - len(after)
    if room < 1:
        raise UsageError(f"--max-length {length}: leaves no room between {len(before) + len(after)} special tokens")
    ledgers = _start(rows)
    separator = after[:1] if data.blocks else []
    in_words = data.masking != "token"
    texts = _Texts(rows, tokenizer, "word_starts" if in_words else None)
    encoded = (ids_and_words if in_words else ids_of)(tokenizer, rows.values)
    for parts, document in _documents(rows, encoded):
        followed = rows.more or document[-1] + 1 < len(rows.values)
        parting = separator if followed and rows.ends(document[-1]) else []
        texts.begin(document)
        if in_words:
            texts.take(chain(parts, [(parting, [True] * len(parting))]))
        else:
            texts.ids.extend(chain(chain.from_iterable(parts), parting))
        texts.end(document, lambda tokens, at=document: _fit(ledgers, tokens, room, rows, at, data))
    columns = {name: column.done() for name, column in texts.columns.items()}
    return _in_pieces(columns, room, ledgers, rows, texts, data.blocks, (before, after))


# --- pairs -----------------------------------------------------------------------------------------------------------


def pairs(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Columns `input_ids` (the source) and `labels` (the target), both with the tokenizer's special tokens."""
    set_languages(tokenizer, data.source_lang, data.target_lang)
    if rows.kind == "text":
        return _denoised(rows, tokenizer, data, limits, measure)
    if not rows.values:  # a part of a stream in which nothing could be used
        empty = Ragged.of([])
        return _finish({"input_ids": empty, "labels": empty}, _start(rows), rows, [])
    sources = source_ids(tokenizer, [source for source, *_ in rows.values], data.source_prefix)
    targets = tokenizer(text_target=[target for _, target, *_ in rows.values], verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None:
        targets = [ids if end in ids[-2:] else [*ids, end] for ids in targets]
    longest = (
        limits.of("max_source_length", data.max_source_length, _needed(sources, measure)),
        limits.of("max_target_length", data.max_target_length, _needed(targets, measure)),
    )
    special = set(tokenizer.all_special_ids)
    ledgers = _start(rows)
    kept: tuple[list[Any], list[Any]] = ([], [])
    origins = []
    for index, pair in enumerate(zip(sources, targets, strict=True)):
        short = [_shorten(ids, most, special) for ids, most in zip(pair, longest, strict=True)]
        ledger = ledgers[rows.source(index)]
        whole, left = sum(map(len, pair)), sum(map(len, short))
        if left == whole:
            ledger.use(whole)
        elif not _cut(ledger, whole, left, rows.place(index), data.on_long or "truncate"):
            continue
        for column, ids in zip(kept, short, strict=True):
            column.append(ids)
        origins.append(index)
    columns = {"input_ids": Ragged.of(kept[0]), "labels": Ragged.of(kept[1])}
    texts = [rows.values[index] for index in origins] if measure else None
    return _finish(columns, ledgers, rows, origins, texts=texts)


def _denoised(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: Any, limits: Limits, measure: bool) -> Examples:
    """Column `input_ids`, texts cut so that what noise makes of them fits, and `sentence_starts` (bool) if it asks for them.

    Where noise is not drawn anew every epoch (of gap sentences, and with `measure`), `input_ids` and `labels` are what it
    makes of them, as pairs.
    """
    noise = denoise.noise(tokenizer, data)
    gaps = isinstance(noise, denoise.GapSentences)
    source, target = (limits.most("max_source_length", data.max_source_length, SOURCE),
                      limits.most("max_target_length", data.max_target_length, TARGET if gaps else None))  # fmt: skip
    if isinstance(noise, denoise.GapSentences):
        room, least = source - noise.around.lengths[0], target > noise.around.lengths[1]
        room = room if least else 0
    else:
        room = denoise.longest(noise.sizes, source, target, noise.density)
    if room < 1:
        raise UsageError(f"--max-source-length {source} and --max-target-length {target} leave no room for a text")
    ledgers = _start(rows)
    texts = _Texts(rows, tokenizer, "sentence_starts" if noise.in_sentences else None)
    encoded = (ids_and_sentences if noise.in_sentences else ids_of)(tokenizer, rows.values)
    for parts, document in _documents(rows, encoded):
        texts.begin(document)
        if noise.in_sentences:
            texts.take(parts)
        else:
            texts.ids.extend(chain.from_iterable(parts))
        texts.end(document, lambda tokens, at=document: _fit(ledgers, tokens, room, rows, at, data))
    columns = {name: column.done() for name, column in texts.columns.items()}
    examples = _in_pieces(columns, room, ledgers, rows, texts, False)
    ids, starts = examples.columns["input_ids"], examples.columns.get("sentence_starts")
    if gaps or measure:
        marks = starts or [None] * len(ids)
        made = [
            noise(text, own, target) if gaps else noise(text, own, number, denoise.EVALUATION)
            for number, (text, own) in enumerate(zip(ids, marks, strict=True))
        ]
        columns = {"input_ids": Ragged.of([s for s, _ in made]), "labels": Ragged.of([t for _, t in made])}
        examples = replace(examples, columns=columns, texts=_in_words(tokenizer, made) if measure else None)
    else:
        examples = replace(examples, read=noise.sizes(ids.lengths))
    for name, lengths in zip(("max_source_length", "max_target_length"), examples.lengths_by_column(), strict=True):
        limits.of(name, getattr(data, name), max(int(lengths.max(initial=2)), 2))
    return examples


SOURCE, TARGET = 512, 256
"""Tokens of a source, and of a target of gap sentences, at most, where nothing else is said: as T5, BART and Pegasus had."""


def _in_words(tokenizer: PreTrainedTokenizerBase, made: list[denoise.Pair]) -> list[tuple[str, ...]]:
    """(source, with its special tokens, target, without them) of each pair."""
    return [
        (tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist(), skip_special_tokens=True))
        for source, target in made
    ]


def source_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], prefix: str) -> list[list[int]]:
    return tokenizer([prefix + text for text in texts], verbose=False)["input_ids"]


def _needed(rows: list[list[int]], measure: bool) -> int:
    """Tokens that 99 % of the rows need, or, where nothing is trained, all of them."""
    return max(int(np.percentile([len(ids) for ids in rows], 100 if measure else 99, method="higher")), 2)


def _shorten(ids: list[int], most: int, special: set[int]) -> list[int]:
    """The first `most` ids, but with the special tokens of the end kept: a cut target still ends."""
    if len(ids) <= most:
        return ids
    tail = 0
    while tail < most - 1 and ids[-tail - 1] in special:
        tail += 1
    return [*ids[: most - tail], *ids[len(ids) - tail :]]


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> None:
    """Tell a multilingual tokenizer (mBART, M2M100, NLLB) which way the translation goes.

    Raises UsageError, with a suggestion, for a language that it does not know.
    """
    for attribute, flag, language in (("src_lang", "--source-lang", source), ("tgt_lang", "--target-lang", target)):
        if not hasattr(tokenizer, attribute):
            continue
        known = languages(tokenizer)
        if not language:
            if known and getattr(tokenizer, attribute) is None:
                raise UsageError(f"{flag} is missing: this tokenizer wants one of {', '.join(known[:12])}, …")
            continue
        if known and language not in known:
            near = suggestion(language, known) or "; there are " + ", ".join(known[:12]) + (
                ", …" if known[12:] else ""
            )
            raise UsageError(f"{flag} {language}: the tokenizer does not know this language{near}")
        setattr(tokenizer, attribute, language)


def languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The languages of a multilingual tokenizer, as it wants them named; empty where it does not say."""
    listed = getattr(tokenizer, "lang_code_to_id", None) or [
        token for token in tokenizer.all_special_tokens if re.fullmatch(r"[a-z]{2,3}_[A-Za-z]{2,4}", token)
    ]
    return sorted(listed)
