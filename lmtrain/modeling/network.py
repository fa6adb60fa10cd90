"""The network: from the hub, from a folder, or from scratch."""

from pickle import UnpicklingError
from typing import Any, cast

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lmtrain.config.architectures import adapter_base, is_classifier
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError
from lmtrain.modeling import lora, merging
from lmtrain.modeling.classifier_head import NO_HEAD, LabelHead, renew_head, set_head
from lmtrain.modeling.configuration import LOADING, not_loaded, sized_config
from lmtrain.modeling.cpu_kernels import fuse_gelu
from lmtrain.modeling.encoder_decoder import is_cross_attention, join, set_special_tokens
from lmtrain.modeling.loss import decoder_inputs
from lmtrain.modeling.tokenizer import added_tokens
from lmtrain.preprocessing.vocabulary import id_count, vocabulary_ids

POOLER = ".pooler."
"""What the heads of some encoders read; masked language models have none."""

POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


def positions(network: PreTrainedModel) -> int | None:
    """The number of tokens that the model can read at once; None where its positions are relative, as T5's.

    It follows from the position embeddings, not from the configuration: RoBERTa never uses its first entries (its
    positions start after the pad id), and BART's table has two entries more than its configuration says.
    """
    tables = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
    ]
    unused = (
        (table.padding_idx + 1 if table.padding_idx is not None else 0) + getattr(table, "offset", 0)
        for table in tables
    )
    lengths = [table.num_embeddings - skipped for table, skipped in zip(tables, unused, strict=True)]
    if lengths:
        return min(lengths)
    # Rotary positions have no table.
    limit: int | None = getattr(network.config, "max_position_embeddings", None)
    return limit


def load_network(
    model: Model,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    auto_model: Any,
    task_type: str | None = None,
    kernels: bool = True,
    head: LabelHead = NO_HEAD,
) -> tuple[PreTrainedModel, list[str]]:
    """The network in float32, and notes for the user; `head` is what its head for labels is for.

    With `model.lora` the network has an adapter of peft's `task_type`, and only the adapter is trainable. Without it, a
    model that is an adapter is merged into its base. `kernels` allows faster implementations of the same functions.
    Raises InputError for weights that are damaged or do not fit, UsageError for an adapter that the network cannot have.
    """
    if model.from_scratch:
        network, notes = _from_scratch(model, config, tokenizer, auto_model, head)
    elif model.encoder:
        network, notes = _pair(model, config, tokenizer)
    else:
        others = set_head(config, head)
        network, notes = _pretrained(model, config, tokenizer, auto_model, task_type, bool(head.labels))
        if others and is_classifier(config.architectures) and not adapter_base(model.name):
            notes.append(f"the head is new and starts at random, because the labels are others: {renew_head(network)}")
    if kernels:
        fuse_gelu(network)
    return network, notes


def load_encoder(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, model_with_head: Any
) -> PreTrainedModel:
    """The encoder alone, without a head and without the decoder of an encoder-decoder. Raises InputError.

    An adapter names its weights as in the model with its head, which `model_with_head` loads.
    """
    network, _ = load_network(model, config, tokenizer, model_with_head if adapter_base(model.name) else AutoModel)
    return cast(PreTrainedModel, network.get_encoder() if config.is_encoder_decoder else network.base_model)


def _pretrained(
    model: Model,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    auto_model: Any,
    task_type: str | None,
    has_labels: bool,
) -> tuple[PreTrainedModel, list[str]]:
    base = adapter_base(model.name)
    notes = merging.check(model.name, config, has_labels) if base else []
    network, report = _from_weights(model, base or model.name, config, auto_model)
    of_weights = _check_weights(network, report, base or model.name, headless=auto_model is AutoModel)
    notes += [] if base and has_labels else of_weights  # the head comes with the adapter
    if base:
        notes += merging.fit_tables(network, tokenizer, model.name)
    check_vocabulary(network, tokenizer, model.name)
    rows = _embeddings(network)
    added, more = _fit_vocabulary(network, tokenizer, added_tokens(model, tokenizer))
    notes += more
    if base:
        merging.check_added(model.name, added if model.lora else [i for i in added if i >= rows])
    if model.lora and not base:
        notes += lora.adapt(network, model, task_type, lora.new_modules(network, report["missing_keys"]), added)
    elif model.lora:
        notes += lora.continue_adapter(network, model.name)
    elif base:
        network = merging.merged(network, model.name)
        notes.append(f"the adapter {model.name} is merged into {base}")
    return network, notes


def _from_scratch(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, auto_model: Any, head: LabelHead
) -> tuple[PreTrainedModel, list[str]]:
    config = sized_config(config, model, tokenizer)
    set_head(config, head)
    try:
        network: PreTrainedModel = auto_model.from_config(
            config, trust_remote_code=model.trust_remote_code, **_attention(model)
        )
    except LOADING as error:
        raise InputError(f"--model-config: no {config.model_type} can be built like this: {error}") from None
    if model.encoder:
        set_special_tokens(network, tokenizer)
    else:
        _set_decoder_start(network)
    check_vocabulary(network, tokenizer, model.name)
    return network, [f"{config.model_type} from scratch: {network.num_parameters():,} parameters"]


def _pair(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    """One network of a trained encoder and a trained decoder."""
    halves, notes = [], []
    for name, own, auto_model in (
        (str(model.encoder), config.encoder, AutoModel),
        (str(model.decoder), config.decoder, AutoModelForCausalLM),
    ):
        half, report = _from_weights(model, name, own, auto_model)
        report["missing_keys"] = {key for key in report["missing_keys"] if not is_cross_attention(key)}
        notes += _check_weights(half, report, name, headless=auto_model is AutoModel)
        halves.append(half)
    network = join(*halves)
    set_special_tokens(network, tokenizer)
    check_vocabulary(network, tokenizer, str(model.encoder))
    return network, [*notes, "the cross-attention between encoder and decoder is new and starts at random"]


def _from_weights(
    model: Model, name: str, config: PretrainedConfig, auto_model: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto_model.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # else a bfloat16 checkpoint would be trained in pure bfloat16
            use_safetensors=None if model.allow_pickle else True,  # None: a pickle if there is nothing else
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report lists all of them; _check_weights raises
            **_attention(model),
            **_quantised(model),
        )
        return loaded
    except UnpicklingError:
        raise InputError(f"{name}: its pickle holds more than weights, so it is not read") from None
    except LOADING as error:
        raise InputError(not_loaded("model", name, error)) from None


def _attention(model: Model) -> dict[str, Any]:
    return {"attn_implementation": model.attn} if model.attn else {}


def _quantised(model: Model) -> dict[str, Any]:
    """Four bits per weight (QLoRA, Dettmers et al. 2023). Raises UsageError without a CUDA GPU."""
    if not model.load_in_4bit:
        return {}
    if not torch.cuda.is_available():
        raise UsageError("--load-in-4bit: needs a CUDA GPU; drop it here")
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16,
    )
    return {"quantization_config": four, "device_map": {"": torch.cuda.current_device()}}


def _fit_vocabulary(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inside: list[int]
) -> tuple[list[int], list[str]]:
    """Give embeddings to tokens that were added to the model's tokenizer; their ids, and notes for the user.

    `inside` are those of them that fall into rows of a table that is larger than the model's own tokenizer.
    """
    beyond = _without_embedding(network, tokenizer)
    added = sorted({*inside, *beyond})
    if not added:
        return [], []
    try:
        if beyond:
            network.resize_token_embeddings(id_count(tokenizer))
    except NotImplementedError:
        raise InputError(
            "tokens were added to the tokenizer, and a pair of encoder and decoder cannot get embeddings for them"
        ) from None
    words = ", ".join(tokenizer.convert_ids_to_tokens(added[:5])) + (", …" if added[5:] else "")
    where = "new" if beyond else "rows that the model's table had to spare"
    return added, [f"{len(added)} tokens were added to the tokenizer ({words}): their embeddings are {where}"]


def _embeddings(network: PreTrainedModel) -> int:
    return cast(torch.nn.Embedding, network.get_input_embeddings()).num_embeddings


def _without_embedding(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokenizer that are beyond the table of embeddings."""
    ids = vocabulary_ids(tokenizer)
    return ids[ids >= _embeddings(network)].tolist()


def check_vocabulary(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise InputError where entries of the tokenizer have no embedding, unless they are tokens that were added to it."""
    if not set(_without_embedding(network, tokenizer)) <= set(tokenizer.added_tokens_decoder):
        raise InputError(
            f"{name}: {_embeddings(network)} embeddings, but the ids of the tokenizer reach {id_count(tokenizer) - 1}; "
            "they do not belong together"
        )


def _set_decoder_start(network: PreTrainedModel) -> None:
    """Let generation start with the token that the model's own shift of the labels starts with (mBART: the last one)."""
    if not network.config.is_encoder_decoder:
        return
    end = network.config.eos_token_id
    start = int(decoder_inputs(network, torch.tensor([[end - 1 if end else end + 1, end]]))[0, 0])
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = start


def _check_weights(network: PreTrainedModel, report: dict[str, Any], name: str, headless: bool) -> list[str]:
    """Notes on a new head and on unused weights. Raises InputError for everything else that does not fit.

    A `headless` network needs neither a head nor a pooler, which only heads read.
    """
    body = f"{network.base_model_prefix}."
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if headless:
        missing = [key for key in missing if not key.startswith("pooler.")]
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    labels = is_classifier([type(network).__name__])
    if wrong := [key for key in mismatched if not labels or key.startswith(body)]:
        raise InputError(f"{name}: weights of another shape than config.json says: {_some(wrong)}")
    missing += mismatched  # a head for other labels
    same_class = type(network).__name__ in (network.config.architectures or []) and not mismatched
    lost = [
        key for key in missing if same_class or headless or (key.startswith(body) and not (labels and POOLER in key))
    ]
    if lost:
        raise InputError(f"{name}: weights are missing: {_some(lost)}; the file is damaged or not of this model")
    strange = [key for key in unexpected if key.startswith(body) and ".pooler." not in f".{key}"]
    if strange:
        raise InputError(f"{name}: has weights that the model has no place for: {_some(strange)}")
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name}: {key} holds NaN or infinity; the file is damaged")
    if headless:
        return []
    notes = [f"the head is new and starts at random: {_some(missing)}"] if missing else []
    return notes + ([f"not needed here and left out: {_some(unexpected)}"] if unexpected else [])


def _some(keys: list[Any]) -> str:
    names = [str(key[0]) if isinstance(key, tuple) else str(key) for key in keys]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
