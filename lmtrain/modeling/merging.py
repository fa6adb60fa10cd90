"""An adapter merged into its base, whatever its kind and whichever tool trained it.

What an adapter computes is asked of peft: the merged model has to give the same logits, or the adapter is refused.
"""

from collections import Counter
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any, cast
from warnings import catch_warnings, simplefilter

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lmtrain.config.architectures import ADAPTER, LABEL_TASKS, read_json
from lmtrain.errors import InputError
from lmtrain.modeling.lora import BROKEN, PREFIX, WEIGHTS, first_line, load_generation_config
from lmtrain.preprocessing.vocabulary import id_count

OTHER_TASKS = (*LABEL_TASKS, "QUESTION_ANS")
"""peft's tasks of models that write no text and fill no mask."""

ROWS_AXIS = {"weight": 0, "base_layer.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
"""Weights of an adapter that belong to a table of embeddings -> their dimension that counts its rows."""

WHOLE = ("weight", "base_layer.weight")

TOLERANCE = 1e-3
"""Of the largest logit: what merging may change, which is rounding in float32."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""As safetensors names the types that models are trained in."""


def check(name: str, base: PretrainedConfig, has_labels: bool) -> list[str]:
    """Before weights are read: notes on what peft ignores of an adapter. `has_labels`: the model is to give labels.

    Raises InputError for an adapter that cannot be merged.
    """
    import peft

    path = Path(name) / ADAPTER
    settings = read_json(path)
    kind, task = str(settings.get("peft_type")), settings.get("task_type")
    if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        raise InputError(f"{path}: peft_type is {kind}, which peft {peft.__version__} does not know; a newer one may")
    if not hasattr(peft.PEFT_TYPE_TO_TUNER_MAPPING[cast(Any, kind)], "merge_and_unload"):
        raise InputError(
            f"{name}: an adapter of kind {kind} adds to what the model reads instead of changing weights, so it cannot be "
            "merged; only peft itself runs it"
        )
    if task in OTHER_TASKS and not (has_labels and task in LABEL_TASKS):
        raise InputError(f"{name}: an adapter for {task}, not for a language model, so its head has no place here")
    if getattr(base, "quantization_config", None):
        raise InputError(
            f"{name}: its base has quantised weights, which an adapter cannot be merged into; write the original model "
            f"into base_model_name_or_path in {path}"
        )
    known = {"peft_version", *signature(peft.PEFT_TYPE_TO_CONFIG_MAPPING[cast(Any, kind)].__init__).parameters}
    unknown = sorted(key for key, value in settings.items() if key not in known and value)
    return [f"{path}: peft {peft.__version__} does not know {', '.join(unknown)}: ignored"] if unknown else []


def merged(network: PreTrainedModel, name: str) -> PreTrainedModel:
    """The network with the adapter of a folder merged into its weights. Raises InputError."""
    tied = _is_tied(network)
    adapted = _adapted(network, name)
    expected = _logits(network)
    _untie_adapted_layers(network)
    try:
        with catch_warnings():
            simplefilter("ignore")  # of tied embeddings, which are settled below
            whole: PreTrainedModel = adapted.merge_and_unload()
    except (*BROKEN, AttributeError) as error:
        raise InputError(f"{name}: peft cannot merge this adapter: {first_line(error)}") from None
    if tied:
        _settle_tie(whole)
    if not _agree(_logits(whole), expected):
        raise InputError(f"{name}: peft cannot merge this adapter: the merged model gives other logits")
    whole.requires_grad_(True)
    return whole


def _adapted(network: PreTrainedModel, name: str) -> Any:
    from peft import PeftModel

    try:
        with catch_warnings(record=True, action="always") as caught:
            adapted = PeftModel.from_pretrained(network, name)
        load_generation_config(network, name)
    except (*BROKEN, AttributeError) as error:
        raise InputError(f"{name}: the adapter does not fit its base: {first_line(error)}") from None
    if lost := [str(w.message) for w in caught if "missing adapter keys" in str(w.message).lower()]:
        raise InputError(f"{name}: the adapter does not fit its base: {lost[0].splitlines()[0][:200]}")
    return adapted


@torch.no_grad()
def _logits(network: PreTrainedModel) -> torch.Tensor:
    """What the network predicts for its first tokens."""
    ids = torch.arange(min(8, len(_embeddings(network)[1].weight)), device=network.device)[None]
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    output = network.eval()(input_ids=ids, **more)
    ends = ("start_logits", "end_logits")  # of a model that answers questions
    return cast(torch.Tensor, torch.stack([output[n] for n in ends]) if ends[0] in output else output.logits)


def _agree(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())


# --- tied embeddings -------------------------------------------------------------------------------------------------
def _embeddings(network: PreTrainedModel) -> tuple[Any, Any]:
    """(the head, or None without one; the input embeddings)."""
    return network.get_output_embeddings(), network.get_input_embeddings()


def _is_tied(network: PreTrainedModel) -> bool:
    head, table = _embeddings(network)
    return head is not None and head.weight is table.weight


def _untie_adapted_layers(network: PreTrainedModel) -> None:
    """Give adapted layers weights of their own: merging changes them in place, and with them all that are tied to them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    users = Counter(id(weight) for _, weight in network.named_parameters(remove_duplicate=False))
    for layer in [module for module in network.modules() if isinstance(module, BaseTunerLayer)]:
        inner: Any = layer.get_base_layer()
        if users[id(getattr(inner, "weight", None))] > 1:
            inner.weight = nn.Parameter(inner.weight.detach().clone())


def _settle_tie(network: PreTrainedModel) -> None:
    """Of a base whose head was tied to the embeddings: tie them again if they are equal, else say so in config.json."""
    head, table = _embeddings(network)
    if torch.equal(head.weight, table.weight):
        head.weight = table.weight
    # T5 is always tied by its configuration, which its weights overrule; false there has another meaning.
    always = cast(Any, type(network.config))(tie_word_embeddings=False).tie_word_embeddings
    network.config.tie_word_embeddings = always or head.weight is table.weight


def check_saved(network: PreTrainedModel, folder: Path, name: str) -> None:
    """Raise InputError for a model that is another one when it is loaded again: its embeddings were tied, and are not."""
    if _is_tied(network) or _embeddings(network)[0] is None:
        return
    again = type(network).from_pretrained(folder, dtype=network.dtype)
    if not _agree(_logits(again), _logits(network)):
        raise InputError(
            f"{name}: changes some of the embeddings that {network.config.model_type} keeps tied, so the merged model cannot "
            "be saved; use the adapter with its base"
        )


# --- tables of embeddings --------------------------------------------------------------------------------------------
def fit_tables(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """Cut or grow the base's embeddings to the adapter's, as its trainer did; a note where that was necessary.

    Raises InputError, with both sizes, where rows are needed that neither of the two has.
    """
    tables = _tables(network)
    found = _table_sizes(name, tables)
    if not found:
        return []
    rows, sizes = len(_embeddings(network)[1].weight), sorted({rows for *_, rows in found})
    size = sizes[-1]
    if len(sizes) > 1:
        raise InputError(f"{name}: its tables of embeddings have {' and '.join(map(str, sizes))} rows, not the same")
    if id_count(tokenizer) > size:
        raise InputError(
            f"{name}: the adapter has {size} embeddings, but the ids of the tokenizer reach {id_count(tokenizer) - 1}; they do "
            "not belong together"
        )
    if size == rows:
        return []
    whole = {tables[module] for module, suffix, _ in found if suffix in WHOLE}
    if size > rows and whole != set(tables.values()) and not set(range(rows, size)) <= trained_tokens(name):
        raise InputError(
            f"{name}: the adapter was trained with {size} embeddings, but its base has {rows}, and the adapter does not "
            "hold the others; name the model that it was trained with as base_model_name_or_path in adapter_config.json"
        )
    try:
        network.resize_token_embeddings(size, mean_resizing=False)
    except NotImplementedError:
        raise InputError(f"{name}: the adapter has {size} embeddings, but its base has {rows}") from None
    return [
        f"the base has {rows} embeddings and the adapter {size}: the base is {'cut' if size < rows else 'grown'} to {size}"
    ]


def _tables(network: PreTrainedModel) -> dict[str, int]:
    """Names of the modules that hold the input or output embeddings -> an id of the matrix, which several may share."""
    weights = {id(module.weight) for module in _embeddings(network) if module is not None}
    modules = network.named_modules(remove_duplicate=False)
    return {name: id(m.weight) for name, m in modules if id(getattr(m, "weight", None)) in weights}


def _table_sizes(name: str, tables: dict[str, int]) -> list[tuple[str, str, int]]:
    """(module, which of its weights, rows of the table) for all weights of the adapter that belong to a table."""
    path = Path(name) / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            shapes = {key.removeprefix(PREFIX): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: {first_line(error)}") from None
    parts = ((module, key.removeprefix(f"{module}."), shape) for key, shape in shapes.items() for module in tables)
    return [(module, rest, int(shape[ROWS_AXIS[rest]])) for module, rest, shape in parts if rest in ROWS_AXIS]


def trained_tokens(name: str) -> set[int]:
    """Ids of the tokens whose embeddings an adapter trained one by one."""
    trained = read_json(Path(name) / ADAPTER).get("trainable_token_indices") or []
    return {int(i) for ids in (trained.values() if isinstance(trained, dict) else [trained]) for i in ids}


def check_added(name: str, added: list[int]) -> None:
    """Raise InputError for tokens that were added to the tokenizer, but of which the adapter has no embeddings."""
    if lost := sorted(set(added) - trained_tokens(name)):
        raise InputError(
            f"{name}: the tokenizer has {len(lost)} tokens that neither the adapter nor its base has embeddings for; make "
            "one model with `lmtrain merge`, and train that with the longer tokenizer"
        )


def saved_dtype(name: str) -> torch.dtype:
    """The type of most weights in the files of a model that was loaded before; float32 if it has no usual one."""
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, local_files_only=True))
    counts = Counter[str]()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
            for part in slices:
                counts[part.get_dtype()] += prod(part.get_shape())
    return DTYPES.get(counts.most_common(1)[0][0], torch.float32) if counts else torch.float32
