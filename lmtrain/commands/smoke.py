"""A recipe tried out in seconds, offline: its architecture made small, its data made up, everything else as it says.

What a recipe asks for in the way of weights and data it need not have at hand: a tiny model of the same architecture is
made with random weights, saved, and loaded as the real one would be; rows are made up to fit the columns.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, set_seed

from lmtrain.config.architectures import TABLES, TRAINED, adapter_base, made_for, read_config, types_of
from lmtrain.config.loading import build
from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES
from lmtrain.config.values import Document
from lmtrain.data.builtin import EXAMPLES, english, korean
from lmtrain.data.columns import OPTIONS, template_fields
from lmtrain.errors import InputError
from lmtrain.modeling.configuration import LOADING
from lmtrain.modeling.network import load_network
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import train_tokenizer
from lmtrain.runtime.console import Console

ROWS, STEPS, LENGTH, VOCABULARY = 48, 4, 64, 400

SIZES = (
    (r"(num_)?(\w+_)?(hidden_)?layers?", 2), (r"n_layers?", 2),
    (r"(num_)?(\w+_)?(attention_|key_value_)?heads|n_heads?", 2),
    (r"hidden_size|d_model|n_embd|dim|embedding_size|word_embed_proj_dim", 32), (r"head_dim|d_kv", 16),
    (r"intermediate_size|d_ff|\w*ffn_dim|hidden_dim|n_inner|feed_forward_size", 64),
    (r"num_local_experts|num_experts|n_routed_experts", 4),
)  # fmt: skip
"""What sizes are called in configurations, and what they become."""

LAYERS: dict[str, Document] = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]}}
"""Where the layers are also listed one by one, whatever their number is."""

ALIASES = {
    "opus-mt": "marian", "nllb": "m2m_100", "deberta-v3": "deberta-v2", "xlm-r": "xlm-roberta", "smollm": "llama",
    "kogpt": "gpt2", "pythia": "gpt_neox", "spanbert": "bert", "mdeberta": "deberta-v2",
}  # fmt: skip
"""Part of a name on the hub -> architecture, where the name of the architecture is not a part of it."""


@contextmanager
def shrunk(recipe: Any, console: Console) -> Iterator[Any]:
    """The recipe with a small model and little data, and with a run folder that is gone afterwards unless it names one.

    Raises InputError for an architecture that cannot be made small.
    """
    with tempfile.TemporaryDirectory(prefix="lmtrain-smoke-") as folder:
        document = recipe.model_dump(mode="json", exclude_none=True)
        rows = Path(folder) / "rows"
        _write_rows(rows, recipe)
        document["data"] |= _little(recipe, rows)
        document["model"] |= _small(recipe, Path(folder), console)
        document["train"] |= {"max_steps": STEPS, "batch_size": 4, "grad_accum": min(recipe.train.grad_accum, 2),
                              "warmup_steps": 0, "log_every": 1, "compile": False, "report_to": ["none"]}  # fmt: skip
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
def _small(recipe: Any, folder: Path, console: Console) -> Document:
    """What to write into the recipe's model section."""
    model = recipe.model
    if model.encoder:
        return _small_pair(model, console)
    model_type = (
        model.name if model.from_scratch and made_for(model.name) else architecture_of(model.name, recipe.objective)
    )
    config = sizes(model_type)
    if model.from_scratch:
        return {"name": model_type, "config": config, "tokenizer": _small_tokenizer(model.tokenizer)}
    console.note(f"a small {model_type} with random weights in the place of {model.name}")
    objective = OBJECTIVES[recipe.objective]
    tokenizer = train_tokenizer.train_tokenizer(
        f"bpe:{VOCABULARY}", list(_sentences()), objective.frame_for(recipe.data)
    )
    set_seed(recipe.train.seed)
    scratch = Model(name=model_type, from_scratch=True, config=config)
    network, _ = load_network(scratch, AutoConfig.for_model(model_type), tokenizer, objective.auto_model)
    place = folder / "model"
    network.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return {"name": str(place), "tokenizer": None, "load_in_4bit": False}


def _small_pair(model: Model, console: Console) -> Document:
    halves = {"encoder": "mlm", "decoder": "mlm" if model.encoder == model.decoder else "clm"}
    types = {
        half: getattr(model, half) if model.from_scratch else architecture_of(getattr(model, half), objective)
        for half, objective in halves.items()
    }
    console.note(
        f"a small pair of {types['encoder']} and {types['decoder']} with random weights in the place of the trained one"
    )
    config = {name: size for model_type in types.values() for name, size in sizes(model_type).items()}
    return {**types, "from_scratch": True, "config": config, "tokenizer": _small_tokenizer(model.tokenizer)}


def architecture_of(name: str, objective: str) -> str:
    """The architecture of a model, by its configuration where that is at hand, else by its name. Raises InputError."""
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
        raise InputError(f"--smoke: {name} is not in the cache, and its name does not say of which architecture it is "
                         f"({TABLES[objective][1]}); fetch it once online")  # fmt: skip
    return ALIASES[max(found, key=len)] if found else known[max(near, key=len)]


def sizes(model_type: str) -> Document:
    """Small sizes for an architecture, by the names that its own configuration has for them."""
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
def _little(recipe: Any, rows: Path) -> Document:
    """What to write into the recipe's data section: a few rows of what is at hand, and made up ones for all else."""
    data = recipe.data
    at_hand = all(_is_at_hand(name) for name in (*data.train, *data.eval))
    lengths = {
        name: min(value, LENGTH)
        for name in ("max_length", "max_source_length", "max_target_length")
        if (value := getattr(data, name, None))
    }
    few = (
        {"val_split": 0.2, "eval": []}
        if not data.streaming
        else {"val_split": 0.0, "eval": [f"{_made(rows, data)}#8"]}
    )
    train = [f"{name.partition('#')[0]}#{ROWS}" for name in data.train] if at_hand else [_made(rows, data)]
    return {**lengths, **few, "train": train, "weights": data.weights if at_hand else []}


def _is_at_hand(name: str) -> bool:
    name = name.partition("#")[0]
    return name.removeprefix("example:") in EXAMPLES if name.startswith("example:") else Path(name).exists()


def _sentences() -> Iterator[str]:
    for number in range(1, ROWS + 1):
        yield f"After {english(number)} comes {english(number + 1)}, and {korean(number)} 다음은 {korean(number + 1)}."


def _kind(data: Any) -> str:
    """The kind of rows that the recipe's columns speak of; without any, the plainest that its objective reads."""
    named = [kind for kind in data.kinds if any(getattr(data, option, None) for option in OPTIONS[kind])]
    return named[0] if named else data.kinds[-1]


def _made(rows: Path, data: Any) -> str:
    return str(rows if _is_parallel(data) else rows.with_suffix(".jsonl"))


def _is_parallel(data: Any) -> bool:
    """Whether the data are two files, line by line."""
    return bool(getattr(data, "source_lang", None) and data.target_lang and not data.source_column)


def _write_rows(rows: Path, recipe: Any) -> None:
    data, kind = recipe.data, _kind(recipe.data)
    texts = list(_sentences())
    answers = [re.sub(r"After (.*), and .*", r"\1", text) for text in texts]
    if _is_parallel(data):
        for language, lines in ((data.source_lang, texts), (data.target_lang, answers)):
            Path(f"{rows}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    values: list[tuple[Any, ...]] = [(text, answer) for text, answer in zip(texts, answers, strict=True)]
    if kind == "messages":
        values = [([{"role": "user", "content": a}, {"role": "assistant", "content": b}],) for a, b in values]
    paths = [getattr(data, option) or option.removesuffix("_column") for option in OPTIONS[kind]]
    lines = [json.dumps(_nested(paths, value), ensure_ascii=False) for value in values]
    rows.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _nested(paths: list[str], values: tuple[Any, ...]) -> Document:
    """A record in which each value stands at its dotted path."""
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
