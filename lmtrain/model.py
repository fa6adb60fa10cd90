"""Tokenizer and network: from the hub, from a folder, or from nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertTokenizer,
    BitsAndBytesConfig,
    GPT2Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lmtrain import chat, hub, lora
from lmtrain.architectures import TRAINED, adapter_base, check_objective, is_architecture, made_for
from lmtrain.encoder_decoder import check_vocabularies, is_between, join, paired_config, small_config, speak
from lmtrain.errors import InputError, UsageError, suggestion
from lmtrain.kernels import fuse
from lmtrain.loss import decoder_inputs
from lmtrain.recipe import Model

# What the libraries raise when what they are asked to load is not there or not sound.
LOADING = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    SafetensorError,
    HfHubHTTPError,
    StrictDataclassError,
)


def load_config(model: Model, objective: str | None) -> PretrainedConfig:
    """The model's configuration (of an adapter: its base's); with `objective` None of a language model of any kind.

    Raises InputError where there is none, or for another objective.
    """
    if model.encoder and model.from_scratch:
        return small_config(model.encoder, str(model.decoder), model.config)
    if model.encoder:
        return paired_config(_config_of(model, model.encoder), _config_of(model, str(model.decoder)))
    if model.from_scratch and is_architecture(model.name):
        return AutoConfig.for_model(model.name)
    name = adapter_base(model.name) or model.name
    config = _config_of(model, name)
    check_objective(config.model_type, objective or made_for(config.model_type) or "", name)
    return config


def _config_of(model: Model, name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=model.trust_remote_code)
    except LOADING as error:
        raise InputError(_not_loaded("model", name, error)) from None


def objective_of_hub(model: Model) -> str:
    """The objective of a model of the hub. Raises InputError."""
    try:
        model_type = AutoConfig.from_pretrained(model.name, trust_remote_code=model.trust_remote_code).model_type
    except LOADING as error:
        raise InputError(_not_loaded("model", model.name, error)) from None
    objective = made_for(model_type)
    if objective is None:
        raise InputError(f"{model.name} ({model_type}) is no language model that clm, mlm or seq2seq could train")
    return objective


def load_tokenizer(
    model: Model, kind: str | None = None, learn: Callable[[str], PreTrainedTokenizerBase] | None = None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """(the tokenizer that the recipe names, or one that is learnt as it says, or the model's own; what to say about it).

    `kind` is that of the rows to encode, where there are any. Raises InputError.
    """
    if model.tokenizer and TRAINED.fullmatch(model.tokenizer):
        assert learn
        tokenizer = learn(model.tokenizer)
    else:
        tokenizer = _tokenizer_of(model, model.tokenizer or _with_tokenizer(model.encoder or model.name))
        if model.decoder and not model.from_scratch:
            check_vocabularies(tokenizer, _tokenizer_of(model, model.decoder), model.decoder)
    adopted = _adopt_special_tokens(tokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    template, ends = None, []
    if kind == "messages":
        template = chat.ensure_template(tokenizer)
        ends = chat.notes(tokenizer)
    return tokenizer, [note for note in (adopted, template, *ends) if note]


def _tokenizer_of(model: Model, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = _bare_vocabulary(Path(name)) or AutoTokenizer.from_pretrained(
            name, trust_remote_code=model.trust_remote_code
        )
    except LOADING as error:
        raise InputError(_not_loaded("tokenizer", name, error)) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name}: no tokenizer there; name one with --tokenizer")
    return tokenizer


def _with_tokenizer(name: str) -> str:
    """Where the tokenizer of a model lies: an adapter may have it from its base."""
    base = adapter_base(name)
    return base if base and not any(Path(name).glob("tokenizer*")) else name


def _bare_vocabulary(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder that holds a vocabulary and nothing that says whose: BERT's or GPT-2's kind."""
    if not folder.is_dir() or any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    if (folder / "vocab.txt").exists():
        entries = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        cased = any(entry != entry.lower() for entry in entries if not entry.startswith("["))
        return BertTokenizer.from_pretrained(folder, do_lower_case=not cased, strip_accents=False)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return GPT2Tokenizer.from_pretrained(folder)
    return None


USUAL_TOKENS = {
    "mask_token": ("[MASK]", "<mask>"), "pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",), "sep_token": ("[SEP]",), "eos_token": ("</s>", "<|endoftext|>"),
}  # fmt: skip


def _adopt_special_tokens(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give roles to the usual special tokens that the vocabulary holds but nobody declared; what to say about it."""
    vocabulary = tokenizer.get_vocab()
    adopted = {
        role: token
        for role, names in USUAL_TOKENS.items()
        for token in names
        if getattr(tokenizer, role) is None and token in vocabulary
    }
    if adopted:
        tokenizer.add_special_tokens(adopted)
    return (
        f"the tokenizer declares no {', no '.join(adopted)}: using {', '.join(adopted.values())}" if adopted else None
    )


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
        notes += lora.go_on(network, model.name)
    elif base:
        network = lora.merged(network, model.name)
        notes.append(f"the adapter {model.name} is merged into {base}")
    fuse(network)
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
    config = shaped(config, model, tokenizer)
    try:
        network = auto_model.from_config(config, trust_remote_code=model.trust_remote_code, **_attention(model))
    except LOADING as error:
        raise InputError(f"--model-config: no {config.model_type} can be built like this: {error}") from None
    if model.encoder:
        speak(network, tokenizer)
    else:
        _start_as_trained(network)
    check_vocabulary(network, tokenizer, model.name)
    fuse(network)
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
        raise InputError(_not_loaded("model", name, error)) from None


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


def shaped(config: PretrainedConfig, model: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The default configuration with the recipe's sizes, and with the tokenizer's vocabulary and special ids."""
    if model.encoder:
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
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
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end,
        "bos_token_id": next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None), end),
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "decoder_vocab_size": len(tokenizer),
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
            # Made anew, so that what follows from a size (heads from width, decoder from encoder) follows from ours.
            return AutoConfig.for_model(model.name, **wanted)
        config.update(wanted)
        return config
    except LOADING as error:
        raise UsageError(f"--model-config: {str(error).splitlines()[-1].strip()}") from None


SCALED = {name: {"scale_embedding": True} for name in ("marian", "pegasus")}
"""As all their released models have it: without it the fixed positions drown the tokens, and training stands still."""


def _by_first_name(config: PretrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """`hidden_size` is `n_embd` to a GPT-2: the names of its own constructor."""
    return {config.attribute_map.get(name, name): value for name, value in sizes.items()}


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


def _not_loaded(what: str, name: str, error: Exception) -> str:
    """One line on why a model or a tokenizer could not be had."""
    if (
        what == "tokenizer"
        and Path(name).is_dir()
        and not any(any(Path(name).glob(pattern)) for pattern in ("tokenizer*", "vocab*", "merges*", "*.model"))
    ):
        return f"{name}: no tokenizer in this folder; name one with --tokenizer"
    if Path(name).is_dir():
        return f"{name}: the {what} cannot be loaded: {_first_line(error)}"
    if HF_HUB_OFFLINE:
        hint = "; --from-scratch --tokenizer bpe:8000 starts a new one" if is_architecture(name) else ""
        return f"{name}: no such folder, and offline there is no such {what} in the cache; fetch it once online{hint}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, hub.HubFault):
            return f"{name}: no such folder, and {cause}; try again later"
        if isinstance(cause, GatedRepoError):
            return f"{name}: the hub gives it only to whom its authors allow; ask there, then `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{name}: no such folder, and no such {what} on the hub (private ones need `hf auth login`)"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return f"{name}: the hub answers {cause.response.status_code}; try again later"
        cause = cause.__cause__ or cause.__context__
    if fault := hub.last_fault():
        return f"{name}: no such folder, and {fault}; try again later"
    return f"{name}: no such folder, and the hub gives no such {what}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) if lines and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
    return text[:300]
