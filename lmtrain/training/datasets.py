"""Rows -> tokenised examples of both splits, from the cache where possible, and their batches."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from accelerate import PartialState
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmtrain.config.data import Data
from lmtrain.config.recipe import Recipe
from lmtrain.data.cache import CacheEntry
from lmtrain.data.corpus import Corpus
from lmtrain.data.ledger import Ledger
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.modeling.document_mask import Packing
from lmtrain.modeling.tokenizer_checks import check_on_data
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing import lost_text
from lmtrain.preprocessing.batch import Collator
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.sampler import BatchSampler, count_trained
from lmtrain.preprocessing.stream import Stream
from lmtrain.preprocessing.text_pieces import training_texts
from lmtrain.preprocessing.train_tokenizer import SpecialTokens, train_tokenizer, with_special_tokens
from lmtrain.runtime.memory import release_memory
from lmtrain.training.hosts import of_first

TRIED_ROWS = 1000
"""Rows of a stream's first chunk on which the model is tried before training."""


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and evaluates on, and what to report about it."""

    train: Examples
    held_out: Examples | None
    notes: list[str]
    warnings: list[str]
    shared_rows: int
    duplicate_rows: int

    @property
    def limits(self) -> Limits:
        """The lengths that both splits were cut to."""
        return self.train.limits


def learn_tokenizer(specification: str, corpus: Corpus, special_tokens: SpecialTokens) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the training rows, in the first process for all. Raises InputError."""

    def make() -> CacheEntry:
        made = train_tokenizer(specification, training_texts(corpus.splits.train.texts()), special_tokens)
        return {}, {"tokenizer": made.backend_tokenizer.to_str()}

    state = PartialState()
    key = corpus.key and corpus.cache.key("tokenizer", corpus.key, specification, asdict(special_tokens))
    made = corpus.cache.remember(key, make, corpus.unchanged)[1]["tokenizer"] if state.is_main_process else ""
    text = of_first(made)
    return with_special_tokens(Tokenizer.from_str(text), special_tokens)


def prepare_data(
    corpus: Corpus,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    collator: Collator,
    packed: Data,
    limits: Limits,
) -> PreparedData:
    """Both splits as examples. `packed` is the data section with the packing that the model allows in training.

    Raises InputError, naming the flag, if no token would be predicted.
    """
    data = corpus.data
    objective.set_languages(tokenizer, data)  # also where the cache spares the encoding

    def make() -> CacheEntry:
        splits = corpus.splits
        # The first chunk of a stream is encoded as if it were all.
        rows = replace(splits.train, is_chunk=False, has_next=False, next_is_same_source=False)
        train = objective.encode(rows, tokenizer, packed, limits, False)
        train = train.head(TRIED_ROWS) if data.streaming else train
        held = objective.encode(splits.held_out, tokenizer, data, train.limits, True) if splits.held_out else None
        count_trained(train, collator, 0)
        if held:
            count_trained(held, collator, None)
        warnings = [*splits.warnings(data.on_leak), *train.warnings]
        warnings += check_text(objective, tokenizer, splits.train, train, "--data")
        if held and splits.held_out:
            warnings += [f"evaluation data: {line}" for line in held.warnings]
            warnings += check_text(objective, tokenizer, splits.held_out, held, "evaluation data")
        return _arrays(PreparedData(train, held, splits.notes, warnings, splits.shared_rows, splits.duplicate_rows))

    key = None
    if (fingerprint := tokenizer_fingerprint(tokenizer)) and corpus.key:
        model_class = str(objective.auto_model.__name__)
        key = corpus.cache.key(
            corpus.key, fingerprint, model_class, objective.labels, limits.positions, packed.model_dump()
        )
    prepared = _from_arrays(*_made_once(corpus, key, make))
    if corpus.release_rows():
        release_memory()
    for examples, flag in ((prepared.train, "--data"), (prepared.held_out, "--eval-data")):
        only_tried = flag == "--data" and data.streaming
        if examples and not only_tried and not examples.ledger.tokens_trained:
            raise InputError(f"{flag}: no token of it would be predicted: {why_untrained(examples.ledger)}")
    return prepared


def why_untrained(ledger: Ledger) -> str:
    """Why data has no token to predict."""
    if ledger.tokens_unknown > ledger.tokens_used / 2:
        return (
            f"the tokenizer does not know the text ({ledger.tokens_unknown:,} of {ledger.tokens_used:,} tokens are unknown); use "
            "the tokenizer of a model for this language, or train one: --from-scratch --tokenizer bpe:8000"
        )
    return "the texts are too short, or --mask-probability is too low"


def _made_once(corpus: Corpus, key: str | None, make: Callable[[], CacheEntry]) -> CacheEntry:
    """The entry, which one process makes: others of its host find it in the cache, or the first process sends it."""
    state = PartialState()
    if key is None or corpus.cache.folder is None:
        return of_first(make() if state.is_main_process else ({}, {}))
    with state.local_main_process_first():  # it has read the rows already
        return corpus.cache.remember(key, make, corpus.unchanged)


def check_text(
    objective: Objective, tokenizer: PreTrainedTokenizerBase, rows: Rows, examples: Examples, where: str
) -> list[str]:
    """Count the unknown tokens; what to report about the text that is lost on the way to ids.

    Raises InputError where the tokens are not those of the tokenizer's authors.
    """
    check_on_data(tokenizer, lost_text.sample(rows))
    lost_text.count_unknown(examples, tokenizer)
    return lost_text.warnings(tokenizer, rows, examples, where, objective.writes)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A hash of everything that determines the tokens of a text; None for a slow tokenizer, which cannot be hashed."""
    if not tokenizer.is_fast:
        return None
    decisive = (
        type(tokenizer).__name__,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        getattr(tokenizer, "src_lang", None),
        getattr(tokenizer, "tgt_lang", None),
    )
    return sha256(json.dumps(decisive, default=str).encode()).hexdigest()


def training_batches(
    recipe: Recipe,
    corpus: Corpus,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    packing: Packing,
    prepared: PreparedData,
    collator: Collator,
    process: tuple[int, int],
    width: int | None = None,
) -> BatchSampler | Stream:
    """The batches of this process, from examples at hand or read while training.

    `process` is (number, of how many); `width` that of padding-free rows, where batches are padding-free.
    """
    train, limits = recipe.train, prepared.limits

    def packed(examples: Examples) -> Examples:
        return examples.packed(limits["max_length"]) if packing.shares_rows else examples

    def encode(rows: Rows) -> Examples:
        examples = objective.encode(rows, tokenizer, packing.data, limits, False)
        lost_text.count_unknown(examples, tokenizer)
        return packed(examples)

    if recipe.data.streaming:
        return Stream(
            corpus.train_reader,
            encode,
            collator,
            train.seed,
            train.batch_size,
            recipe.data.shuffle_buffer,
            process,
            grad_accum=train.grad_accum,
            steps=train.max_steps or 1,
            share=of_first,
        )
    return BatchSampler(
        packed(prepared.train),
        train.seed,
        train.batch_size,
        train.batch_tokens,
        train.group_by_length,
        tuple(recipe.data.weights),
        process,
        train.grad_accum,
        train.epochs,
        train.max_steps,
        width,
    )


# --- examples <-> arrays and a document ------------------------------------------------------------------------------


def _arrays(prepared: PreparedData) -> CacheEntry:
    arrays: dict[str, np.ndarray] = {}
    document: dict[str, Any] = {"positions": prepared.train.limits.positions, "splits": {}} | {
        name: getattr(prepared, name) for name in ("notes", "warnings", "shared_rows", "duplicate_rows")
    }
    for split, examples in (("train", prepared.train), ("held_out", prepared.held_out)):
        if examples is None:
            continue
        for name, column in examples.columns.items():
            arrays |= {f"{split}-{name}-values": column.values, f"{split}-{name}-offsets": column.offsets}
        if examples.read is not None:
            arrays |= {f"{split}-read-{n}": lengths for n, lengths in enumerate(examples.read)}
        if examples.sources is not None:
            arrays[f"{split}-sources"] = examples.sources
        document["splits"][split] = {
            "kind": examples.kind,
            "columns": list(examples.columns),
            "fingerprint": examples.fingerprint,
            "ledgers": [asdict(ledger) for ledger in examples.ledgers],
            "texts": examples.texts,
            "evaluation_sets": list(examples.evaluation_sets),
            "limits": dict(examples.limits.resolved),
        }
    return arrays, document


def _from_arrays(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> PreparedData:
    def examples(split: str) -> Examples | None:
        saved = document["splits"].get(split)
        if saved is None:
            return None
        columns = {
            name: Ragged(arrays[f"{split}-{name}-values"], arrays[f"{split}-{name}-offsets"])
            for name in saved["columns"]
        }
        ledgers = tuple(Ledger(**ledger) for ledger in saved["ledgers"])
        texts = saved["texts"] and [tuple(text) for text in saved["texts"]]
        read = (arrays[f"{split}-read-0"], arrays[f"{split}-read-1"]) if f"{split}-read-0" in arrays else None
        sources = arrays.get(f"{split}-sources")
        limits = Limits(document["positions"], saved["limits"])
        sets = tuple(saved["evaluation_sets"])
        return Examples(saved["kind"], columns, ledgers, limits, saved["fingerprint"], sources, sets, texts, read=read)

    train = examples("train")
    assert train is not None
    saved = {name: document[name] for name in ("notes", "warnings", "shared_rows", "duplicate_rows")}
    return PreparedData(train, examples("held_out"), **saved)
