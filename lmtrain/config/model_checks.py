"""Checks of a model before torch is imported."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmtrain.config.architectures import (
    ADAPTER,
    GONE,
    HUB_NAME,
    TABLES,
    TRAINED,
    adapter_base,
    check_objective,
    check_path,
    is_architecture,
    model_table,
    objective_of_folder,
    read_config,
    read_json,
)
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError, suggestion, visible


def check_is_adapter(name: str) -> None:
    """Raise InputError if `name` is not the folder of an adapter."""
    check_path(name, "ADAPTER")
    folder = Path(name)
    if (folder / ADAPTER).is_file():
        return
    if not folder.exists():
        raise InputError(f"{name}: no such folder; one on the Hub comes with `hf download {name} --local-dir FOLDER`")
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{ADAPTER}"))
    hint = f"; name one of those in it: {', '.join(inside)}" if inside else ""
    raise InputError(f"{name}: not an adapter, because it has no {ADAPTER}{hint}")


def check_model(objective: str, model: Model, weights: bool = True) -> None:
    """Check the model and the tokenizer; weight files only with `weights`.

    Raises UsageError for flags that exclude each other, InputError for a model that is missing or of another objective.
    """
    if model.config and not model.from_scratch:
        raise UsageError("--model-config sets the sizes of a new model; it needs --from-scratch")
    if model.load_in_4bit and find_spec("bitsandbytes") is None:
        raise UsageError("--load-in-4bit: needs bitsandbytes (pip install bitsandbytes) and a CUDA GPU; drop it here")
    trained_tokenizer = bool(model.tokenizer and TRAINED.fullmatch(model.tokenizer))
    if model.tokenizer and not trained_tokenizer and _is_misspelt(model.tokenizer):
        raise UsageError(f"--tokenizer {model.tokenizer}: write bpe:8000, wordpiece:8000, unigram:8000, char or byte")
    if trained_tokenizer and not model.from_scratch:
        raise UsageError(
            f"--tokenizer {model.tokenizer} trains a new vocabulary, but a trained model keeps its own "
            "(add --from-scratch for a new model)"
        )
    if model.encoder:
        _check_pair(model, weights)
        return
    check_path(model.name, "--model")
    folder = Path(model.name)
    if folder.is_dir():
        _check_folder(folder, objective, model, weights and not model.from_scratch)
    elif model.from_scratch and "/" not in model.name:
        if model.name in GONE:
            check_objective(model.name, objective)
        if not is_architecture(model.name):
            known = [name for table, _ in TABLES.values() for name in model_table(table)]
            raise InputError(f"--model {model.name}: no such architecture{suggestion(model.name, known)}")
        check_objective(model.name, objective)
        check_size(model.config, "--model-config")
        if model.tokenizer is None:
            raise UsageError(
                f"{model.name} from scratch has no tokenizer; train one with --tokenizer bpe:8000, or name one"
            )
    else:
        check_name(model.name)


def _is_misspelt(tokenizer: str) -> bool:
    """Whether it looks like the specification of a tokenizer to train, and there is no file or folder of that name."""
    return bool(re.match(r"(bpe|wordpiece|unigram|char|byte)\b", tokenizer)) and not Path(tokenizer).exists()


def _check_pair(model: Model, weights: bool) -> None:
    """Check that --encoder is a masked language model, and --decoder a model that transformers has as a causal one."""
    for name, flag, table in ((model.encoder, "--encoder", "mlm"), (model.decoder, "--decoder", "clm")):
        check_path(str(name), flag)
        folder = Path(str(name))
        if folder.is_dir() and not model.from_scratch:
            config = read_config(folder)
            _check_files(folder, config, model, weights)
            model_type = str(config["model_type"])
        elif model.from_scratch:
            model_type = str(name)
            if model_type not in model_table(TABLES[table][0]):
                raise InputError(
                    f"{flag} {name}: no such architecture{suggestion(str(name), model_table(TABLES[table][0]))}"
                )
        else:
            check_name(str(name))
            continue
        if model_type not in model_table(TABLES[table][0]):
            raise InputError(f"{flag} {name} ({model_type}): cannot be the {flag[2:]} of a pair")
    check_size(model.config, "--model-config")
    if model.from_scratch and model.tokenizer is None:
        raise UsageError("a pair from scratch has no tokenizer; train one with --tokenizer bpe:8000, or name one")


def check_encoder(model: Model) -> None:
    """`check_model` for a model of any objective. Raises InputError."""
    check_path(model.name, "--model")
    if objective := objective_of_folder(model.name):
        check_model(objective, model)
    else:
        check_name(model.name)


def check_name(name: str) -> None:
    """Raise InputError for a name that is not a Hub id."""
    if Path(name).exists():
        raise InputError(f"{name}: is a file; name the folder that contains it")
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"{name}: no such folder")


def _check_folder(folder: Path, objective: str, model: Model, weights: bool) -> None:
    if base := adapter_base(str(folder)):
        if weights and not (folder / "adapter_model.safetensors").is_file():
            raise InputError(f"{folder}: has adapter_config.json, but no adapter_model.safetensors{_pickled(folder)}")
        if Path(base).is_dir():
            _check_folder(Path(base), objective, model, weights)
        return
    config = read_config(folder)
    check_objective(str(config.get("model_type")), objective, str(folder))
    _check_files(folder, config, model, weights)


def _check_files(folder: Path, config: dict[str, Any], model: Model, weights: bool) -> None:
    if "auto_map" in config and not model.trust_remote_code:
        raise InputError(f"{folder}: contains its own code, which is run only with --trust-remote-code")
    if "/" in str(config.get("attn_implementation") or config.get("_attn_implementation") or ""):
        raise InputError(
            f"{folder}: its attention implementation is code from the Hub; remove it from config.json, or give --attn"
        )
    check_size({**config, **model.config}, str(folder / "config.json"))
    if not weights:
        return
    for index in folder.glob("*.index.json"):
        _check_shards(index)
    if (folder / SHARDED).is_dir():
        raise InputError(
            f"{folder}: a checkpoint in parts, which the processes of a sharded run wrote; the run folder "
            f"{folder.parent.parent} holds the model once the run has been resumed to its end"
        )
    files = list(folder.glob("*.safetensors"))
    if not files and not model.allow_pickle:
        raise InputError(f"{folder}: no weights in safetensors: {_other_weights(folder)}")
    for path in files:
        if damage := cut_off(path):
            raise InputError(f"{path}: {damage}; fetch or train the model again")


PICKLES = "pytorch_model*.bin"
OTHERS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ckpt", "*.pth", "*.pt", "*.bin")
"""Weights of other tools, which are not read."""
NO_WEIGHTS = re.compile("training_args|optimizer|scheduler|scaler|rng_state")


def _other_weights(folder: Path) -> str:
    """What a folder has instead of weights in safetensors, and what to do."""
    found = [path.name for pattern in (PICKLES, *OTHERS) for path in sorted(folder.glob(pattern))]
    found = [name for name in found if not NO_WEIGHTS.match(name)]
    if not found:
        return "there are none; training with --from-scratch starts with random ones"
    if not Path(found[0]).match(PICKLES):
        return f"only {found[0]}; convert it with the tool that wrote it, or fetch the safetensors of the model"
    return (
        f"only {found[0]}, a pickle, which can run code when loaded; --allow-pickle reads its tensors and nothing else, "
        "and what is trained from them is saved in safetensors"
    )


def _pickled(adapter: Path) -> str:
    if not (adapter / "adapter_model.bin").is_file():
        return ""
    return (
        "; adapter_model.bin is a pickle, which can run code when loaded: save it again with peft's "
        "save_pretrained(…, safe_serialization=True)"
    )


def _check_shards(index: Path) -> None:
    """Raise InputError if an index of weights names anything except files in its own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise InputError(f"{index}: has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or not (index.parent / name).is_file():
            raise InputError(f"{index}: names {visible(str(name))}, which is not a file in this folder")


SHARDED = "sharded"
"""The folder of the parts, in the checkpoint of a sharded run."""

LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
MAX_LAYERS = 10_000


def check_size(config: dict[str, Any], where: str) -> None:
    """Raise InputError for model sizes that do not fit in this machine's memory.

    The estimate is a lower bound: the embeddings and the attention weights of each layer, in float32.
    """
    sizes = {name: value for name, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    layers = max((sizes[name] for name in LAYERS if name in sizes), default=1)
    width = max((sizes[name] for name in WIDTHS if name in sizes), default=1)
    if layers > MAX_LAYERS:
        raise InputError(f"{where}: {layers:,} layers are too many for any model")
    needed = 4 * (sizes.get("vocab_size", 1) * width + layers * 4 * width**2)
    needed = max(needed, 4 * width * max(sizes.get(name, 1) for name in ("max_position_embeddings", "n_positions")))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 50
    if needed > memory:
        raise InputError(
            f"{where}: the model needs more than {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB; "
            "choose smaller sizes"
        )


def cut_off(path: Path) -> str | None:
    """How a safetensors file is damaged, according to its header; None if it has the right length."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return f"cut off after {size:,} bytes"
        try:
            header = json.loads(stream.read(length))
            end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header is damaged"
    missing = 8 + length + end - size
    return f"cut off, {missing:,} bytes are missing" if missing > 0 else None
