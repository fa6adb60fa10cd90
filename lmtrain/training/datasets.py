"""Rows -> examples of both sides, from the cache where the same has been prepared before."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmtrain.config.data import Direction
from lmtrain.data.cache import Kept
from lmtrain.data.corpus import Corpus
from lmtrain.data.ledger import Ledger
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.modeling.document_mask import Packing
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing.batch import Collator
from lmtrain.preprocessing.dataset import Examples, Limits
from lmtrain.preprocessing.languages import set_languages
from lmtrain.preprocessing.ragged import Ragged
from lmtrain.preprocessing.sampler import BatchSampler, count_trained
from lmtrain.preprocessing.stream import Stream
from lmtrain.preprocessing.train_tokenizer import SpecialTokens, train_tokenizer, with_special_tokens
from lmtrain.runtime.memory import release_memory

LOOKED_AT = 1000
"""Rows of a stream's first chunk that are kept, for what is asked of the model before training."""


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and evaluates on, and what there is to say about it."""

    train: Examples
    held_out: Examples | None
    notes: list[str]
    warnings: list[str]
    shared_rows: int
    duplicate_rows: int


def learn_tokenizer(specification: str, corpus: Corpus, frame: SpecialTokens) -> PreTrainedTokenizerFast:
    """The tokenizer that is trained on the training rows, by the first process for all. Raises InputError."""

    def make() -> Kept:
        made = train_tokenizer(specification, corpus.sides.train.texts(), frame)
        return {}, {"tokenizer": made.backend_tokenizer.to_str()}

    state = PartialState()
    key = corpus.key and corpus.cache.key("tokenizer", corpus.key, specification, asdict(frame))
    made = [corpus.cache.remember(key, make, corpus.unchanged)[1]["tokenizer"] if state.is_main_process else None]
    text = broadcast_object_list(made)[0] if state.num_processes > 1 else made[0]
    return with_special_tokens(Tokenizer.from_str(text), frame)


def prepare(
    corpus: Corpus, objective: Objective, tokenizer: PreTrainedTokenizerBase, train_data: Any, limits: Limits
) -> PreparedData:
    """Both sides as examples. `train_data` is the data section for training, where it is packed in another way.

    Enters in `limits` what they come to. Raises InputError, naming the flag, where not one token would be predicted.
    """
    data, seed = corpus.data, corpus.seed
    if isinstance(data, Direction):
        set_languages(tokenizer, data.source_lang, data.target_lang)  # also where nothing has to be encoded

    def make() -> Kept:
        sides = corpus.sides
        # Of a stream the first chunk is looked at as if it were all.
        seen = replace(sides.train, part=False, more=False, open=False)
        rows = objective.encode(seen, tokenizer, train_data, limits, False)
        rows = rows.head(LOOKED_AT) if data.streaming else rows
        held = objective.encode(sides.held_out, tokenizer, data, limits, True) if sides.held_out else None
        collate = objective.collate(tokenizer, data, seed)
        count_trained(rows, collate, 0)
        if held:
            count_trained(held, collate, None)
        prepared = PreparedData(rows, held, sides.train.notes, sides.warnings(data.on_leak), sides.shared_rows,
                            sides.duplicate_rows)  # fmt: skip
        return _kept(prepared, limits)

    key = None
    if (told := tokenizer_fingerprint(tokenizer)) and corpus.key:
        key = corpus.cache.key(
            corpus.key, told, str(objective.auto_model.__name__), limits.positions, train_data.model_dump()
        )
    arrays, document = corpus.cache.remember(key, make, corpus.unchanged)
    if corpus.forget():
        release_memory()
    prepared = _restored(arrays, document)
    limits.resolved.update(document["limits"])
    for examples, flag in ((prepared.train, "--data"), (prepared.held_out, "--eval-data")):
        looked_at = flag == "--data" and data.streaming
        if examples and not looked_at and not examples.ledger.tokens_trained:
            raise InputError(f"{flag}: not one token of it would be predicted: the texts are too short, "
                             "or --mask-probability is too low")  # fmt: skip
    return prepared


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A hash of all that decides how a tokenizer cuts a text; None for a slow one, which does not tell."""
    if not tokenizer.is_fast:
        return None
    told = (
        type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template,
        tokenizer.special_tokens_map, getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None),
    )  # fmt: skip
    return sha256(json.dumps(told, default=str).encode()).hexdigest()


def training_batches(
    recipe: Any, corpus: Corpus, objective: Objective, tokenizer: PreTrainedTokenizerBase, packing: Packing,
    prepared: PreparedData, collate: Collator, limits: Limits, process: tuple[int, int], width: int | None = None,
) -> BatchSampler | Stream:  # fmt: skip
    """The training data in batches, all at hand or read while training; `process` is (number, of how many), `width`
    that of the rows in which the texts of a batch are laid end to end, if they are.
    """
    section = recipe.train

    def shared(examples: Examples) -> Examples:
        return examples.packed(limits.resolved["max_length"]) if packing.apart else examples

    def encode(rows: Rows) -> Examples:
        return shared(objective.encode(rows, tokenizer, packing.data, limits, False))

    if recipe.data.streaming:
        return Stream(
            corpus.reading, encode, collate, section.seed, section.batch_size, recipe.data.shuffle_buffer, process,
            grad_accum=section.grad_accum, steps=section.max_steps,
        )  # fmt: skip
    return BatchSampler(
        shared(prepared.train), section.seed, section.batch_size, section.batch_tokens, section.group_by_length,
        tuple(recipe.data.weights), process, section.grad_accum, section.epochs, section.max_steps, width,
    )  # fmt: skip


# --- examples <-> arrays and a document ------------------------------------------------------------------------------
def _kept(prepared: PreparedData, limits: Limits) -> Kept:
    arrays: dict[str, np.ndarray] = {}
    document: dict[str, Any] = {"limits": limits.resolved, "sides": {}} | {
        name: getattr(prepared, name) for name in ("notes", "warnings", "shared_rows", "duplicate_rows")
    }
    for side, examples in (("train", prepared.train), ("held_out", prepared.held_out)):
        if examples is None:
            continue
        for name, column in examples.columns.items():
            arrays |= {f"{side}-{name}-values": column.values, f"{side}-{name}-offsets": column.offsets}
        if examples.read is not None:
            arrays |= {f"{side}-read-{n}": lengths for n, lengths in enumerate(examples.read)}
        if examples.sources is not None:
            arrays[f"{side}-sources"] = examples.sources
        document["sides"][side] = {
            "kind": examples.kind, "columns": list(examples.columns), "fingerprint": examples.fingerprint,
            "ledgers": [asdict(ledger) for ledger in examples.ledgers], "texts": examples.texts,
        }  # fmt: skip
    return arrays, document


def _restored(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> PreparedData:
    def examples(side: str) -> Examples | None:
        told = document["sides"].get(side)
        if told is None:
            return None
        columns = {
            name: Ragged(arrays[f"{side}-{name}-values"], arrays[f"{side}-{name}-offsets"]) for name in told["columns"]
        }
        ledgers = tuple(Ledger(**ledger) for ledger in told["ledgers"])
        texts = told["texts"] and [tuple(text) for text in told["texts"]]
        read = (arrays[f"{side}-read-0"], arrays[f"{side}-read-1"]) if f"{side}-read-0" in arrays else None
        sources = arrays.get(f"{side}-sources")
        return Examples(told["kind"], columns, ledgers, told["fingerprint"], sources, texts, read=read)

    train = examples("train")
    assert train is not None
    told = {name: document[name] for name in ("notes", "warnings", "shared_rows", "duplicate_rows")}
    return PreparedData(train, examples("held_out"), **told)
