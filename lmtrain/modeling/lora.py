"""LoRA: a few numbers beside the frozen weights, which are trained and saved alone and can be merged into them.

Hu et al.: "LoRA: Low-Rank Adaptation of Large Language Models", 2021; DoRA: Liu et al. 2024; rsLoRA: Kalajdzievski 2023.

The adapter is put into the network itself, whose class stays what it is, so that loss, evaluation and generation know
nothing of it. What is written is what peft writes: PeftModel.from_pretrained loads it. peft is imported where there is an
adapter: it takes a quarter of a second, which whoever looks at data or asks a model without one is spared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError

if TYPE_CHECKING:
    from peft import PeftConfig


WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before every name in an adapter's file, by peft's convention."""

BROKEN = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""What the libraries raise for an adapter that is not sound, or not of this model."""


def is_adapted(network: Any) -> bool:
    return hasattr(network, "peft_config")


def adapt(
    network: PreTrainedModel, model: Model, task_type: str | None, new: list[str], added: list[int]
) -> list[str]:
    """Put a new adapter into the network, to be trained in its place; what to say about it.

    `new` are modules without trained weights and `added` ids of tokens without a trained embedding: these are trained
    whole, and saved with the adapter. Raises UsageError for targets that the network does not have.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=model.lora_r, lora_alpha=model.lora_alpha, lora_dropout=model.lora_dropout, use_dora=model.lora_dora,
        use_rslora=model.lora_rslora, target_modules=model.lora_targets or "all-linear", exclude_modules=new or None,
        modules_to_save=new or None, trainable_token_indices=_embeddings(network, added) if added else None,
        task_type=task_type, auto_mapping=None if task_type else _class_of(network),
        base_model_name_or_path=base_of(network),
    )  # fmt: skip
    try:
        _inject(network, config)
    except ValueError as error:
        wanted, known = ", ".join(model.lora_targets) or "all-linear", _linear(network)
        near = [match for target in model.lora_targets for match in get_close_matches(target, known, 1)]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        if "not found" in str(error):
            raise UsageError(f"--lora-targets {wanted}: the model has no such linear layers; {hint}") from None
        raise UsageError(f"--lora-targets {wanted}: {str(error).splitlines()[0]}") from None
    return _spoken(network)


def continue_adapter(network: PreTrainedModel, name: str) -> list[str]:
    """Put the adapter of a folder into the network, to be trained on; what to say about it. Raises InputError."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(name)
        config.inference_mode, config.base_model_name_or_path = False, base_of(network)
        _inject(network, config)
        load_weights(network, Path(name))
        _speak_as(network, name)
    except BROKEN as error:
        raise InputError(f"{name}: the adapter does not fit its base: {_first_line(error)}") from None
    return [f"going on with the adapter {name}", *_spoken(network)]


def merged(network: PreTrainedModel, name: str) -> PreTrainedModel:
    """The network with the adapter of a folder merged into its weights. Raises InputError."""
    from peft import PeftModel

    try:
        with catch_warnings(record=True, action="always") as caught:
            adapted = PeftModel.from_pretrained(network, name)
        if lost := [str(w.message) for w in caught if "missing adapter keys" in str(w.message).lower()]:
            raise InputError(f"{name}: the adapter does not fit its base: {lost[0].splitlines()[0][:200]}")
        network = adapted.merge_and_unload().requires_grad_(True)
        _speak_as(network, name)
        return network
    except BROKEN as error:
        raise InputError(f"{name}: the adapter does not fit its base: {_first_line(error)}") from None


def _speak_as(network: PreTrainedModel, name: str) -> None:
    """Let generation end where the adapter was trained to end."""
    if (Path(name) / GENERATION_CONFIG_NAME).is_file():
        network.generation_config = GenerationConfig.from_pretrained(name)


def _inject(network: PreTrainedModel, config: "PeftConfig") -> None:
    from peft import inject_adapter_in_model

    with catch_warnings():
        simplefilter("ignore")  # of layers that are stored transposed, as GPT-2's, peft sees to itself
        inject_adapter_in_model(config, network)
    for name in ("target_modules", "exclude_modules"):  # sets, whose order would be another in every process
        if isinstance(names := getattr(config, name, None), set):
            setattr(config, name, sorted(names))
    network.enable_input_require_grads()  # else gradient checkpointing finds nothing to go back to


# --- files -----------------------------------------------------------------------------------------------------------
def save(network: PreTrainedModel, folder: Path | str, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the model or, where it has one, the adapter alone."""
    if not is_adapted(network):
        network.save_pretrained(folder, state_dict=state_dict)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = adapter_weights(network, state_dict)
    named = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in own.items()}
    save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    with _for_use(network) as config:
        config.save_pretrained(str(folder))
    if network.can_generate():
        network.generation_config.save_pretrained(folder)


def load_weights(network: PreTrainedModel, folder: Path) -> None:
    """Read back into an adapted network what `save` wrote. Raises ValueError where it is of another one."""
    from peft import set_peft_model_state_dict

    own, expected = saved_weights(folder), adapter_weights(network)
    if odd := sorted(own.keys() ^ expected.keys()):
        raise ValueError(f"{folder / WEIGHTS}: {odd[0]} is in one of adapter and model alone")
    set_peft_model_state_dict(network, own)


def adapter_weights(
    network: PreTrainedModel, state_dict: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The adapter's weights in a network. Of added tokens only their own rows, not the tables that have grown by them."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(network, state_dict=state_dict, save_embedding_layers=False)


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's weights in a folder, named as `weights` names those in a network."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


@contextmanager
def _for_use(network: Any) -> Iterator["PeftConfig"]:
    """The adapter's configuration as whoever loads it wants it: not to be trained."""
    config = network.peft_config["default"]
    config.inference_mode = True
    try:
        yield config
    finally:
        config.inference_mode = False


def base_of(network: PreTrainedModel) -> str:
    """Where the frozen weights are to be had: a hub id, or a folder that is found from wherever one stands."""
    name = network.name_or_path
    return str(Path(name).resolve()) if Path(name).is_dir() else name


# --- what of a network is adapted ------------------------------------------------------------------------------------
def _embeddings(network: PreTrainedModel, added: list[int]) -> dict[str, list[int]]:
    """The tables of the added tokens: that of the input and, where it is another one, that of the output."""
    tables = [network.get_input_embeddings(), network.get_output_embeddings()]
    tied = tables[1] is None or tables[1].weight is tables[0].weight
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(table)]: added for table in tables[: 1 if tied else 2]}


def _class_of(network: PreTrainedModel) -> dict[str, str]:
    """What AutoPeftModel loads the base by, where no task type says it: there is none for masked language models."""
    return {"base_model_class": type(network).__name__, "parent_library": type(network).__module__}


def _linear(network: PreTrainedModel) -> list[str]:
    """The last names of the layers that can be adapted."""
    head = network.get_output_embeddings()
    found = (n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head)
    return sorted({name.rpartition(".")[2] for name in found})


def _spoken(network: Any) -> list[str]:
    config = network.peft_config["default"]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    layers = sorted({name.rpartition(".")[2] for name in config.target_modules or ()})
    kinds = {"DoRA": getattr(config, "use_dora", False), "rsLoRA": getattr(config, "use_rslora", False)}
    kind = " and ".join(name for name, used in kinds.items() if used) or str(config.peft_type.value)
    return [f"{kind} of rank {getattr(config, 'r', '?')} on {', '.join(layers)}: {trained:,} of {every:,} parameters "
            f"are trained ({trained / every:.2%})"]  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
