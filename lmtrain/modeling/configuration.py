"""The configuration of a model: from the hub, from a folder, or from scratch. No weights are read."""

from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from lmtrain.config.architectures import adapter_base, check_objective, is_architecture, made_for
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError, suggestion
from lmtrain.modeling.encoder_decoder import paired_config, small_config
from lmtrain.modeling.missing_library import missing_library
from lmtrain.preprocessing.vocabulary import id_count
from lmtrain.runtime import hub_client

LOADING = (
    ImportError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    SafetensorError,
    HfHubHTTPError,
    StrictDataclassError,
)
"""What the libraries raise for a model that is missing or damaged, or that needs a library that is missing."""


def load_config(model: Model, objective: str | None) -> PretrainedConfig:
    """The configuration of the model, or of the base of an adapter; without `objective`, of any language model.

    Raises InputError where there is none, and for a model that was made for another objective.
    """
    if model.encoder and model.from_scratch:
        return small_config(model.encoder, str(model.decoder), model.config)
    if model.encoder:
        return paired_config(_config_of(model, model.encoder), _config_of(model, str(model.decoder)))
    if model.from_scratch and is_architecture(model.name):
        return AutoConfig.for_model(model.name)
    base = adapter_base(model.name)
    name = base or model.name
    try:
        config = _config_of(model, name)
    except InputError as error:
        if base is None:
            raise
        where = f"base_model_name_or_path in {model.name}/adapter_config.json"
        raise InputError(f"the base of the adapter {model.name} cannot be loaded; {where} names it: {error}") from None
    check_objective(config.model_type, objective or made_for(config.model_type) or "", name)
    return config


def _config_of(model: Model, name: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=model.trust_remote_code)
        return config
    except LOADING as error:
        raise InputError(not_loaded("model", name, error)) from None


def objective_of_hub(model: Model) -> str:
    """The objective that a model on the hub, or the base of an adapter there, was made for. Raises InputError."""
    return str(made_for(load_config(model, None).model_type))


def sized_config(config: PretrainedConfig, model: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """`config` with the sizes of the recipe, and the vocabulary size and special ids of the tokenizer.

    Raises UsageError for a size that the architecture does not have.
    """
    if model.encoder:
        vocabulary = {"vocab_size": id_count(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return small_config(model.encoder, str(model.decoder), model.config | vocabulary)
    defaults = config.to_dict()
    known = {*defaults, *config.attribute_map}
    for name in model.config:
        if name not in known:
            raise UsageError(f"--model-config {name}: {config.model_type} has no such size{suggestion(name, known)}")
    start_is_pad = defaults.get("decoder_start_token_id") in (None, defaults.get("pad_token_id"))
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)
    if config.is_encoder_decoder and end is None:
        raise InputError(
            "the tokenizer has no end token, so a model could never stop; train one with --tokenizer bpe:8000"
        )
    ids = {
        "vocab_size": id_count(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end,
        "bos_token_id": next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None), end),
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "decoder_vocab_size": id_count(tokenizer),
        "decoder_start_token_id": tokenizer.pad_token_id if start_is_pad else end,
        "forced_eos_token_id": end,
        "forced_bos_token_id": None,
    }
    ids |= SCALED.get(config.model_type, {})
    always = {"pad_token_id", "eos_token_id"} | ({"decoder_start_token_id"} if config.is_encoder_decoder else set())
    given = {name: value for name, value in ids.items() if name in defaults or name in always}
    wanted = {**given, **_by_first_name(config, model.config)}
    try:
        if is_architecture(model.name):
            # Constructed again, so that sizes that follow from others (heads from width) follow from the recipe's.
            return AutoConfig.for_model(model.name, **wanted)
        config.update(wanted)
        return config
    except LOADING as error:
        raise UsageError(f"--model-config: {str(error).splitlines()[-1].strip()}") from None


SCALED = {name: {"scale_embedding": True} for name in ("marian", "pegasus")}
"""As in all their released models: without it the fixed positions outweigh the tokens, and the model hardly learns."""


def _by_first_name(config: PretrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """Sizes under the names of the configuration's constructor: GPT-2 calls `hidden_size` `n_embd`."""
    return {config.attribute_map.get(name, name): value for name, value in sizes.items()}


def not_loaded(what: str, name: str, error: Exception) -> str:
    """One line on why a model or a tokenizer could not be loaded."""
    if reason := missing_library(what, name, error):
        return f"{name}: {reason}"
    if (
        what == "tokenizer"
        and Path(name).is_dir()
        and not any(any(Path(name).glob(pattern)) for pattern in ("tokenizer*", "vocab*", "merges*", "*.model"))
    ):
        return f"{name}: no tokenizer in this folder; copy its files there, or name one with --tokenizer"
    if Path(name).is_dir():
        return f"{name}: the {what} cannot be loaded: {_first_line(error)}"
    if HF_HUB_OFFLINE:
        hint = "; training with --from-scratch --tokenizer bpe:8000 starts a new one" if is_architecture(name) else ""
        return f"{name}: no such folder, and offline there is no such {what} in the cache; fetch it once online{hint}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, hub_client.HubFault):
            return f"{name}: no such folder, and {cause}; try again later"
        if isinstance(cause, GatedRepoError):
            return f"{name}: its authors restrict access on the hub; request it there, then `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{name}: no such folder, and no such {what} on the hub (private ones need `hf auth login`)"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return f"{name}: the hub answers {cause.response.status_code}; try again later"
        cause = cause.__cause__ or cause.__context__
    if what == "model" and "safetensors" in str(error):
        return (
            f"{name}: the hub has no weights of it in safetensors; --allow-pickle reads the tensors of a pickle and nothing "
            "else, or name a model with safetensors"
        )
    if fault := hub_client.last_fault():
        return f"{name}: no such folder, and {fault}; try again later"
    return f"{name}: no such folder, and the hub has no such {what}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) if lines and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
    return text[:300]
