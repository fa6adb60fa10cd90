"""`--smoke`: run a recipe in seconds and offline, with a tiny model and few rows; all other settings stay.

A pretrained model is replaced by a small one of the same architecture with random weights, which is saved and loaded
as the real one would be. Data that are not on this machine are replaced by made-up rows with the recipe's columns.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from transformers import AutoConfig, set_seed

from lmtrain.config.architectures import CLASSIFY, TABLES, TRAINED, adapter_base, made_for, read_config, types_of
from lmtrain.config.data import Data, PairData
from lmtrain.config.evaluation_sets import name_and_source, source_of
from lmtrain.config.labelled_data import ClassData
from lmtrain.config.loading import build
from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES, Recipe
from lmtrain.config.values import Document
from lmtrain.data.builtin import EXAMPLES, english, korean
from lmtrain.data.columns import template_fields
from lmtrain.data.selection import OPTIONS
from lmtrain.errors import InputError
from lmtrain.modeling.configuration import LOADING
from lmtrain.modeling.network import load_network
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import train_tokenizer
from lmtrain.runtime.console import Console

ROWS, STEPS, LENGTH, VOCABULARY = 48, 4, 64, 400

SIZES = (
    (r"(num_)?(\w+_)?(hidden_)?layers?|n_layers?", 2),
    (r"(num_)?(\w+_)?(attention_|key_value_)?heads|n_heads?", 2),
    (r"hidden_size|d_model|n_embd|dim|embedding_size|word_embed_proj_dim", 32),
    (r"head_dim|d_kv", 16),
    (r"intermediate_size|d_ff|\w*ffn_dim|hidden_dim|n_inner|feed_forward_size", 64),
    (r"num_local_experts|num_experts|n_routed_experts", 4),
)
"""Pattern of the names that configurations give to a size -> the small size. The first match counts."""

LAYERS: dict[str, Document] = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]}}
"""Model type -> further settings, where the configuration also lists every layer."""

ALIASES = {
    "opus-mt": "marian",
    "nllb": "m2m_100",
    "deberta-v3": "deberta-v2",
    "xlm-r": "xlm-roberta",
    "smollm": "llama",
    "kogpt": "gpt2",
    "pythia": "gpt_neox",
    "spanbert": "bert",
    "mdeberta": "deberta-v2",
}
"""Part of a hub name -> model type, for names that do not contain the model type."""


@contextmanager
def shrunk(recipe: Recipe, console: Console) -> Iterator[Recipe]:
    """The recipe with a tiny model and few rows. Unless it names a run folder, a temporary one is used and deleted.

    Raises InputError for an architecture that cannot be made small.
    """
    with tempfile.TemporaryDirectory(prefix="lmtrain-smoke-") as folder:
        document = recipe.model_dump(mode="json", exclude_none=True)
        stem = Path(folder) / "rows"
        _write_rows(stem, recipe.data)
        document["data"] |= _small_data(recipe.data, stem)
        document["model"] |= _small_model(recipe, Path(folder), console)
        document["train"] |= {
            "max_steps": STEPS,
            "batch_size": 4,
            "grad_accum": min(recipe.train.grad_accum, 2),
            "warmup_steps": 0,
            "log_every": 1,
            "compile": False,
            "report_to": ["none"],
        }
        document["train"].pop("max_time", None)
        document["eval"] |= {"batch_size": 8, "samples": 1}
        document["gates"] = {}
        document["run"] |= {
            "output_dir": recipe.run.output_dir or str(Path(folder) / "run"),
            "offline": True,
            "cache": False,
        }
        yield build(RECIPES[recipe.objective], document, "--smoke")


# --- the model -------------------------------------------------------------------------------------------------------
def _small_model(recipe: Recipe, folder: Path, console: Console) -> Document:
    """Values for the recipe's section `model`; a model that stands in for a pretrained one is saved in `folder`."""
    model = recipe.model
    if model.encoder:
        return _small_pair(model, console)
    pretrained = "mlm" if recipe.objective == CLASSIFY else recipe.objective  # a classifier's encoder
    model_type = model.name if model.from_scratch and made_for(model.name) else architecture_of(model.name, pretrained)
    config = sizes(model_type)
    if model.from_scratch:
        return {"name": model_type, "config": config, "tokenizer": _small_tokenizer(model.tokenizer)}
    console.note(f"a small {model_type} with random weights replaces {model.name}")
    objective = OBJECTIVES[pretrained]
    tokenizer = train_tokenizer.train_tokenizer(
        f"bpe:{VOCABULARY}", list(_sentences()), objective.special_tokens_for(recipe.data)
    )
    set_seed(recipe.train.seed)
    scratch = Model(name=model_type, from_scratch=True, config=config)
    network, _ = load_network(scratch, AutoConfig.for_model(model_type), tokenizer, objective.auto_model)
    saved = folder / "model"
    network.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    return {"name": str(saved), "tokenizer": None, "load_in_4bit": False}


def _small_pair(model: Model, console: Console) -> Document:
    """The same for a model of --encoder and --decoder."""
    halves = {"encoder": "mlm", "decoder": "mlm" if model.encoder == model.decoder else "clm"}
    types = {
        half: getattr(model, half) if model.from_scratch else architecture_of(getattr(model, half), objective)
        for half, objective in halves.items()
    }
    console.note(
        f"a small pair of {types['encoder']} and {types['decoder']} with random weights replaces the pretrained one"
    )
    config = {name: size for model_type in types.values() for name, size in sizes(model_type).items()}
    return {**types, "from_scratch": True, "config": config, "tokenizer": _small_tokenizer(model.tokenizer)}


def architecture_of(name: str, objective: str) -> str:
    """The model type of a model: from its configuration if it is on this machine, else from its name. Raises InputError."""
    name = adapter_base(name) or name
    if Path(name).is_dir():
        return str(read_config(Path(name))["model_type"])
    try:
        return str(AutoConfig.from_pretrained(name, local_files_only=True).model_type)
    except LOADING:
        pass
    plain = name.rpartition("/")[2].lower()
    known = {re.sub(r"[-_]", "", model_type): model_type for model_type in types_of(objective)}
    found = [alias for alias in ALIASES if alias in plain and made_for(ALIASES[alias]) == objective]
    near = [short for short in known if short in re.sub(r"[-_.]", "", plain)]
    if not found and not near:
        raise InputError(
            f"--smoke: {name} is not in the cache, and its name does not tell its architecture "
            f"({TABLES[objective][1]}); download it once"
        )
    return ALIASES[max(found, key=len)] if found else known[max(near, key=len)]


def sizes(model_type: str) -> Document:
    """Small sizes for a model type, under the names of its own configuration."""
    defaults = AutoConfig.for_model(model_type).to_dict()
    numbers = (name for name, value in defaults.items() if isinstance(value, int) and not isinstance(value, bool))
    fitting = {name: [size for pattern, size in SIZES if re.fullmatch(pattern, name)] for name in numbers}
    return {name: found[0] for name, found in fitting.items() if found} | LAYERS.get(model_type, {})


def _small_tokenizer(specification: str | None) -> str:
    match = TRAINED.fullmatch(specification or "")
    if match is None:
        return f"bpe:{VOCABULARY}"
    return f"{match[1]}:{min(int(match[2]), VOCABULARY)}" if match[1] else str(specification)


# --- the data --------------------------------------------------------------------------------------------------------
def _small_data(data: Data, stem: Path) -> Document:
    """Values for the recipe's section `data`: a few rows of data on this machine, otherwise the made-up rows."""
    local = all(_is_local(name) for name in (*data.train, *map(source_of, data.eval)))
    lengths = {
        name: min(value, LENGTH)
        for name in ("max_length", "max_source_length", "max_target_length")
        if (value := getattr(data, name, None))
    }
    made_up = str(stem if _is_parallel(data) else stem.with_suffix(".jsonl"))
    held_out: Document = {"val_split": 0.2, "eval": []}
    if data.eval_sets:
        named = map(name_and_source, data.eval)
        held_out["eval"] = [f"{name}={source.partition('#')[0] if local else made_up}#8" for name, source in named]
    elif data.streaming:
        held_out = {"val_split": 0.0, "eval": [f"{made_up}#8"]}
    train = [f"{name.partition('#')[0]}#{ROWS}" for name in data.train] if local else [made_up]
    return {**lengths, **held_out, "train": train, "weights": data.weights if local else []}


def _is_local(name: str) -> bool:
    name = name.partition("#")[0]
    return name.removeprefix("example:") in EXAMPLES if name.startswith("example:") else Path(name).exists()


def _sentences() -> Iterator[str]:
    for number in range(1, ROWS + 1):
        yield f"After {english(number)} comes {english(number + 1)}, and {korean(number)} 다음은 {korean(number + 1)}."


def _kind(data: Data) -> str:
    """The kind of rows that the recipe's column options describe, or the simplest kind that its objective reads."""
    named = [kind for kind in data.kinds if any(getattr(data, option, None) for option in OPTIONS[kind])]
    if named or not isinstance(data, ClassData):
        return named[0] if named else data.kinds[-1]
    return "tagged" if data.train[0].partition("#")[0].endswith(".conll") else "labelled"


def _labels(data: Data) -> Sequence[Any]:
    """Two labels of a made-up text, in the form that the recipe's problem wants."""
    problem = data.problem_type if isinstance(data, ClassData) else None
    if problem == "regression":
        return (1.5, 3.0)
    return (["odd"], ["even", "number"]) if problem == "multi_label_classification" else ("odd", "even")


def _pair_column(data: Data) -> str | None:
    """The column of the second text, of data that name one."""
    return data.text_pair_column if isinstance(data, ClassData) else None


def _is_parallel(data: Data) -> TypeGuard[PairData]:
    """Whether the data are two text files with one line per pair."""
    return isinstance(data, PairData) and bool(data.source_lang and data.target_lang and not data.source_column)


def _write_rows(stem: Path, data: Data) -> None:
    """Write made-up rows with the recipe's columns: STEM.jsonl, or one file per language."""
    texts = list(_sentences())
    answers = [re.sub(r"After (.*), and .*", r"\1", text) for text in texts]
    if _is_parallel(data):
        for language, lines in ((data.source_lang, texts), (data.target_lang, answers)):
            Path(f"{stem}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    kind = _kind(data)
    values: list[tuple[Any, ...]] = [(text, answer) for text, answer in zip(texts, answers, strict=True)]
    if kind == "messages":
        values = [([{"role": "user", "content": a}, {"role": "assistant", "content": b}],) for a, b in values]
    if kind == "labelled":
        values = [
            (text, *([answer] if _pair_column(data) else []), _labels(data)[n % 2])
            for n, (text, answer) in enumerate(values)
        ]
    if kind == "question":
        values = [
            ("What comes after that?", text, {"text": [answer], "answer_start": [text.index(answer)]})
            for text, answer in values
        ]
    if kind == "tagged":
        values = [(words := text.split(), ["B-NUM", *["O"] * (len(words) - 1)]) for text, _ in values]
    paths = [getattr(data, option) or option.removesuffix("_column") for option in OPTIONS[kind]]
    if pair := _pair_column(data):
        paths.insert(1, pair)
    lines = [json.dumps(_nested(paths, value), ensure_ascii=False) for value in values]
    stem.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _nested(paths: list[str], values: tuple[Any, ...]) -> Document:
    """A record with each value at its dotted path."""
    record: Document = {}
    named = [
        (name, value)
        for path, value in zip(paths, values, strict=False)
        for name in template_fields({}, path) or [path]
    ]
    for path, value in named:
        *outer, last = path.split(".")
        inside = record
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return record
