"""LoRA: a small adapter beside the frozen weights, trained and saved alone, which can be merged into them.

Hu et al.: "LoRA: Low-Rank Adaptation of Large Language Models", 2021; DoRA: Liu et al. 2024; rsLoRA: Kalajdzievski 2023.

The adapter is injected into the network, which keeps its class, so that loss, evaluation and generation need not know of
it. Files are those of peft: PeftModel.from_pretrained loads them. peft is imported only where there is an adapter, because
the import takes a quarter of a second.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from warnings import catch_warnings, simplefilter

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from lmtrain.config.architectures import LABELS
from lmtrain.config.model import Model
from lmtrain.errors import InputError, UsageError
from lmtrain.modeling.classifier_head import head_of, labels_of
from lmtrain.modeling.sharding import is_sharded, load_whole

if TYPE_CHECKING:
    from peft import PeftConfig


WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before every name in an adapter file, by peft's convention."""

BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError)
"""What the libraries raise for an adapter that is damaged, or of another model."""


def is_adapted(network: nn.Module) -> bool:
    return hasattr(network, "peft_config")


def adapt(
    network: PreTrainedModel, model: Model, task_type: str | None, new: list[str], added: list[int]
) -> list[str]:
    """Inject a new adapter, and freeze everything else; notes for the user.

    `new` are names of modules without trained weights, `added` are ids of tokens without trained embeddings: they are
    trained in full and saved with the adapter. Raises UsageError for targets that the network does not have.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,  # type: ignore[arg-type]  # peft divides it by r, so it may have a fraction
        lora_dropout=model.lora_dropout,
        use_dora=model.lora_dora,
        use_rslora=model.lora_rslora,
        target_modules=model.lora_targets or "all-linear",
        exclude_modules=new or None,
        modules_to_save=new or None,
        trainable_token_indices=_embedding_rows(network, added) if added else None,
        task_type=task_type,
        auto_mapping=None if task_type else _class_of(network),
        base_model_name_or_path=base_of(network),
    )
    try:
        _inject(network, config)
    except ValueError as error:
        targets, known = ", ".join(model.lora_targets) or "all-linear", _linear_layers(network)
        near = [match for target in model.lora_targets for match in get_close_matches(target, known, 1)]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        if "not found" in str(error):
            raise UsageError(f"--lora-targets {targets}: the model has no such linear layers; {hint}") from None
        raise UsageError(f"--lora-targets {targets}: {str(error).splitlines()[0]}") from None
    return [_summary(network)]


def continue_adapter(network: PreTrainedModel, name: str) -> list[str]:
    """Inject the adapter of a folder, to continue its training; notes for the user. Raises InputError."""
    from peft import PeftConfig

    try:
        with catch_warnings():
            simplefilter("ignore")  # of keys that peft does not know, which merging.check names
            config = PeftConfig.from_pretrained(name)
        config.inference_mode, config.base_model_name_or_path = False, base_of(network)
        _inject(network, config)
        _check_adapter_alone(network, name)
        load_weights(network, Path(name))
        load_generation_config(network, name)
    except BROKEN as error:
        raise InputError(f"{name}: the adapter does not fit its base: {first_line(error)}") from None
    return [f"continuing to train the adapter {name}", _summary(network)]


def _check_adapter_alone(network: PreTrainedModel, name: str) -> None:
    """Raise InputError for an adapter that comes with whole weights, which would not be saved with it again."""
    if whole := sorted(saved_weights(Path(name)).keys() - adapter_weights(network).keys()):
        raise InputError(
            f"{name}: holds whole weights beside the adapter ({whole[0]}); make one model of it with `lmtrain merge`, and "
            "train that"
        )


def load_generation_config(network: PreTrainedModel, name: str) -> None:
    """Let generation stop at the tokens that the adapter was trained to stop at."""
    if (Path(name) / GENERATION_CONFIG_NAME).is_file():
        network.generation_config = GenerationConfig.from_pretrained(name)


def _inject(network: PreTrainedModel, config: "PeftConfig") -> None:
    from peft import inject_adapter_in_model

    with catch_warnings():
        simplefilter("ignore")  # peft warns that it handles transposed layers (GPT-2's) itself
        inject_adapter_in_model(config, network)
    for name in ("target_modules", "exclude_modules"):  # sets, whose order differs from process to process
        if isinstance(names := getattr(config, name, None), set):
            setattr(config, name, sorted(names))
    # Without it, gradient checkpointing finds no input that requires a gradient.
    network.enable_input_require_grads()


# --- files -----------------------------------------------------------------------------------------------------------
def save(network: PreTrainedModel, folder: Path | str, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Save the adapter alone, or the whole model if it has none."""
    if not is_adapted(network):
        # A copy: save_pretrained empties the dict that it is given.
        network.save_pretrained(folder, state_dict=None if state_dict is None else {**state_dict})
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = adapter_weights(network, state_dict)
    named = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in own.items()}
    save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    save_settings(network, folder)


def save_settings(network: PreTrainedModel, folder: Path | str) -> None:
    """Save the configuration of the adapter, or of a model without one, and how it generates."""
    if is_adapted(network):
        with _inference_mode(network) as config:
            config.save_pretrained(str(folder))
        _save_labels(network, Path(folder))
    else:
        network.config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)


def _save_labels(network: PreTrainedModel, folder: Path) -> None:
    """Write the labels that the adapted model gives, if it gives any."""
    classes = [type(network).__name__]
    if kind := head_of(network.config, classes):
        document = {"labels": labels_of(network.config, classes), "kind": kind}
        (folder / LABELS).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def load_weights(network: PreTrainedModel, folder: Path) -> None:
    """Load what `save` wrote into an adapted network. Raises ValueError for an adapter of another network."""
    from peft import set_peft_model_state_dict

    own, expected = saved_weights(folder), adapter_weights(network)
    if odd := sorted(own.keys() ^ expected.keys()):
        raise ValueError(f"{folder / WEIGHTS}: only one of adapter and model has {odd[0]}")
    if is_sharded(network):
        load_whole(expected, own)
    else:
        set_peft_model_state_dict(network, own)


def adapter_weights(
    network: PreTrainedModel, state_dict: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The adapter's weights in a network; of added tokens their own rows, not the whole embedding matrices."""
    from peft import get_peft_model_state_dict

    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(
        network, state_dict=state_dict, save_embedding_layers=False
    )
    return weights


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's weights in a folder, with the names of `adapter_weights`."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


@contextmanager
def _inference_mode(network: PreTrainedModel) -> Iterator["PeftConfig"]:
    """The adapter's configuration as it is saved: for inference."""
    config = _adapter_config(network)
    config.inference_mode = True
    try:
        yield config
    finally:
        config.inference_mode = False


def base_of(network: PreTrainedModel) -> str:
    """Where the frozen weights come from: a hub id, or the absolute path of a folder."""
    name = str(network.name_or_path)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


# --- what of a network is adapted ------------------------------------------------------------------------------------
def new_modules(network: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """The modules of a new head, which are trained in full; without the output embeddings, which are tied."""
    modules, head = dict(network.named_modules()), _output_embeddings(network)
    owners = {name.rpartition(".")[0] for name in missing}
    if head_of(network.config, [type(network).__name__]):
        # The head of a classifier is trained in full, new or not; peft would adapt some, and save others by itself.
        body = f"{network.base_model_prefix}."
        owners |= {n for n, m in modules.items() if isinstance(m, nn.Linear) and not n.startswith(body)}
    return sorted(name for name in owners if not [*modules[name].children()] and modules[name] is not head)


def _output_embeddings(network: PreTrainedModel) -> nn.Module | None:
    head: nn.Module | None = network.get_output_embeddings()
    return head


def _embedding_rows(network: PreTrainedModel, added: list[int]) -> dict[str, list[int]]:
    """Names of the embedding matrices -> the rows of added tokens; input and output, or one matrix if they are tied."""
    matrices, head = [network.get_input_embeddings()], _output_embeddings(network)
    if head is not None and head.weight is not matrices[0].weight:
        matrices.append(head)
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(matrix)]: added for matrix in matrices}


def _class_of(network: PreTrainedModel) -> dict[str, str]:
    """How AutoPeftModel finds the class of the base without a task type; peft has none for masked language models."""
    return {"base_model_class": type(network).__name__, "parent_library": type(network).__module__}


def _linear_layers(network: PreTrainedModel) -> list[str]:
    """The last names of the layers that can be adapted."""
    head = _output_embeddings(network)
    found = (n for n, m in network.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    return sorted({name.rpartition(".")[2] for name in found})


def _adapter_config(network: PreTrainedModel) -> Any:
    """The configuration of the adapter, whose fields depend on its kind."""
    return cast(Any, network).peft_config["default"]


def _summary(network: PreTrainedModel) -> str:
    config = _adapter_config(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    layers = sorted({name.rpartition(".")[2] for name in config.target_modules or ()})
    kinds = {"DoRA": getattr(config, "use_dora", False), "rsLoRA": getattr(config, "use_rslora", False)}
    kind = " and ".join(name for name, used in kinds.items() if used) or str(config.peft_type.value)
    return (
        f"{kind} of rank {getattr(config, 'r', '?')} on {', '.join(layers)}: {trained:,} of {total:,} parameters are "
        f"trained ({trained / total:.2%})"
    )


def first_line(error: Exception) -> str:
    """What a library says of an adapter; torch names the weights only in the lines below its first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1 if lines[0].endswith(":") and lines[1:] else 0][:300]
