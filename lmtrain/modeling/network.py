"""The network: from the hub, from a folder, or from nothing."""

from collections.abc import Iterable
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lmtrain.config.architectures import adapter_base
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError
from lmtrain.modeling import lora
from lmtrain.modeling.configuration import LOADING, not_loaded, sized_config
from lmtrain.modeling.cpu_kernels import fuse_gelu
from lmtrain.modeling.encoder_decoder import is_between, join, speak
from lmtrain.modeling.loss import decoder_inputs


def positions(network: PreTrainedModel) -> int | None:
    """How many tokens the model can read at once; None where its positions are relative, as T5's.

    The tables of positions are asked, not the configuration: RoBERTa's first entries are never reached (its positions
    start behind the pad id), BART's table has two entries more than it says.
    """
    tables = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
    ]
    unreached = (
        (table.padding_idx + 1 if table.padding_idx is not None else 0) + getattr(table, "offset", 0)
        for table in tables
    )
    lengths = [table.num_embeddings - lost for table, lost in zip(tables, unreached, strict=True)]
    if lengths:
        return min(lengths)
    # Rotary positions have no table.
    return getattr(network.config, "max_position_embeddings", None)


POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


def load_network(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, auto_model: Any,
    task_type: str | None = None,
) -> tuple[PreTrainedModel, list[str]]:  # fmt: skip
    """(the network in float32, what to say about it).

    With `lora` it has an adapter, of peft's `task_type`, and nothing else is trained; else an adapter that the model
    is comes merged into its base. Raises InputError for weights that are not all as they should be, UsageError for an
    adapter that cannot be made of it.
    """
    if model.from_scratch:
        return _from_scratch(model, config, tokenizer, auto_model)
    if model.encoder:
        return _joined(model, config, tokenizer)
    base = adapter_base(model.name)
    network, report = _from_weights(model, base or model.name, config, auto_model)
    notes = _check_weights(network, report, base or model.name, headless=auto_model is AutoModel)
    check_vocabulary(network, tokenizer, model.name)
    added, told = _fit_vocabulary(network, tokenizer)
    notes += told
    if model.lora and not base:
        notes += lora.adapt(network, model, task_type, _new_modules(network, report["missing_keys"]), added)
    elif model.lora:
        notes += lora.continue_adapter(network, model.name)
    elif base:
        network = lora.merged(network, model.name)
        notes.append(f"the adapter {model.name} is merged into {base}")
    fuse_gelu(network)
    return network, notes


def load_encoder(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, headed: Any
) -> PreTrainedModel:
    """What reads, without a head and, of an encoder-decoder, without the decoder. Raises InputError as `load_network`.

    An adapter knows the weights by their names in the model with its head, which is of class `headed`.
    """
    network, _ = load_network(model, config, tokenizer, headed if adapter_base(model.name) else AutoModel)
    return network.get_encoder() if config.is_encoder_decoder else network.base_model


def _from_scratch(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, auto_model: Any
) -> tuple[PreTrainedModel, list[str]]:
    config = sized_config(config, model, tokenizer)
    try:
        network = auto_model.from_config(config, trust_remote_code=model.trust_remote_code, **_attention(model))
    except LOADING as error:
        raise InputError(f"--model-config: no {config.model_type} can be built like this: {error}") from None
    if model.encoder:
        speak(network, tokenizer)
    else:
        _start_as_trained(network)
    check_vocabulary(network, tokenizer, model.name)
    fuse_gelu(network)
    return network, [f"{config.model_type} from scratch: {network.num_parameters():,} parameters"]


def _joined(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    """A trained encoder and a trained decoder as one network."""
    halves, notes = [], []
    for name, own, auto_model in (
        (str(model.encoder), config.encoder, AutoModel),
        (str(model.decoder), config.decoder, AutoModelForCausalLM),
    ):
        half, report = _from_weights(model, name, own, auto_model)
        report["missing_keys"] = {key for key in report["missing_keys"] if not is_between(key)}
        notes += _check_weights(half, report, name, headless=auto_model is AutoModel)
        halves.append(half)
    network = join(*halves)
    speak(network, tokenizer)
    check_vocabulary(network, tokenizer, str(model.encoder))
    return network, [*notes, "what joins encoder and decoder, the cross-attention, is new and starts at random"]


def _from_weights(
    model: Model, name: str, config: PretrainedConfig, auto_model: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        return auto_model.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # a bfloat16 checkpoint would else be trained in bfloat16 altogether
            use_safetensors=None if model.allow_pickle else True,  # None: a pickle where there is nothing else
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to be told of all of them, later
            **_attention(model),
            **_quantised(model),
        )
    except UnpicklingError:
        raise InputError(f"{name}: its pickle holds more than weights, so it is not read") from None
    except LOADING as error:
        raise InputError(not_loaded("model", name, error)) from None


def _attention(model: Model) -> dict[str, Any]:
    return {"attn_implementation": model.attn} if model.attn else {}


def _quantised(model: Model) -> dict[str, Any]:
    """Four bits a weight, as QLoRA holds them (Dettmers et al. 2023). Raises UsageError without a CUDA GPU."""
    if not model.load_in_4bit:
        return {}
    if not torch.cuda.is_available():
        raise UsageError("--load-in-4bit: needs a CUDA GPU; drop it here")
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16,
    )  # fmt: skip
    return {"quantization_config": four, "device_map": {"": torch.cuda.current_device()}}


def _new_modules(network: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """The modules of a new head, which an adapter has to train whole; not the output embeddings, which are tied."""
    modules, head = dict(network.named_modules()), network.get_output_embeddings()
    owners = {name.rpartition(".")[0] for name in missing}
    return sorted(name for name in owners if not [*modules[name].children()] and modules[name] is not head)


def _fit_vocabulary(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str]]:
    """Give the tokens that were added to the model's tokenizer an embedding; (their ids, what to say about it)."""
    added = [*range(network.get_input_embeddings().num_embeddings, len(tokenizer))]
    if not added:
        return [], []
    try:
        network.resize_token_embeddings(len(tokenizer))
    except NotImplementedError:
        raise InputError("tokens were added to the tokenizer, and a pair of encoder and decoder takes none") from None
    words = ", ".join(tokenizer.convert_ids_to_tokens(added[:5]))
    return added, [f"{len(added)} tokens were added to the tokenizer ({words}{', …' if added[5:] else ''}): "
                   "their embeddings are new"]  # fmt: skip


def check_vocabulary(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise InputError where the tokenizer has other entries without an embedding than tokens that were added to it."""
    embeddings = network.get_input_embeddings().num_embeddings
    if not set(range(embeddings, len(tokenizer))) <= set(tokenizer.added_tokens_decoder):
        raise InputError(
            f"{name}: {embeddings} embeddings, but the tokenizer has {len(tokenizer)} entries; they do not belong together"
        )


def _start_as_trained(network: PreTrainedModel) -> None:
    """Let generation start from the token that the model's own shift of the labels starts from (mBART: the last one)."""
    if not network.config.is_encoder_decoder:
        return
    end = network.config.eos_token_id
    start = int(decoder_inputs(network, torch.tensor([[end - 1 if end else end + 1, end]]))[0, 0])
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = start


def _check_weights(network: PreTrainedModel, report: dict[str, Any], name: str, headless: bool) -> list[str]:
    """Say which head is new and which weights are left out; everything else that does not fit is an error.

    A `headless` network needs no head, so there is nothing to say of one; nor of a pooler, which only heads read.
    """
    body = f"{network.base_model_prefix}."
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if headless:
        missing = [key for key in missing if not key.startswith("pooler.")]
    if report["mismatched_keys"]:
        raise InputError(f"{name}: weights of another shape than config.json says: {_some(report['mismatched_keys'])}")
    same_class = type(network).__name__ in (network.config.architectures or [])
    lost = [key for key in missing if same_class or headless or key.startswith(body)]
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
