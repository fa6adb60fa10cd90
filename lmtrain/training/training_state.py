"""The state that a run resumes from besides its weights, as safetensors and JSON: loading it never executes code."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

TENSORS, TREE = "resume.safetensors", "resume.json"
"""The two files in a checkpoint: the tensors by name, and the tree that they belong to."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested state of dicts, lists, tuples, tensors, arrays, numbers and texts."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _parted(state, "", tensors)
    save_file(tensors, folder / TENSORS)
    (folder / TREE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def load(folder: Path) -> dict[str, Any]:
    """What `save` wrote, equal in every value and type."""
    tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
    return _joined(tree, load_file(folder / TENSORS))


def _parted(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for `value`, with the tensors inside put under names."""
    match value:
        case torch.Tensor():
            # A copy where it is a view: what shares memory cannot be saved twice.
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        case np.ndarray():
            return {"array": value.tolist(), "dtype": value.dtype.str}
        case np.generic():
            return value.item()
        case dict():
            return {"dict": [[key, _parted(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
        case tuple():
            return {"tuple": [_parted(inner, f"{name}.{place}", tensors) for place, inner in enumerate(value)]}
        case list():
            return [_parted(inner, f"{name}.{place}", tensors) for place, inner in enumerate(value)]
        case float() if not math.isfinite(value):  # JSON has no such numbers
            return {"float": repr(value)}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{name}: {type(value).__name__} cannot be saved in a checkpoint")


def _joined(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_joined(inner, tensors) for inner in tree]
    if not isinstance(tree, dict):
        return tree
    if "float" in tree:
        return float(tree["float"])
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "array" in tree:
        return np.array(tree["array"], dtype=tree["dtype"])
    if "tuple" in tree:
        return tuple(_joined(inner, tensors) for inner in tree["tuple"])
    return {key: _joined(inner, tensors) for key, inner in tree["dict"]}


# --- random state ----------------------------------------------------------------------------------------------------
def random_state() -> dict[str, Any]:
    """The state of every generator that a model or a library may draw from; none is advanced."""
    devices = [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())]
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "cpu": torch.get_rng_state(),
        **({"cuda": devices} if devices else {}),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned; devices that no longer exist are skipped."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    for device, own in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(own, device)
