"""Weights that are not in safetensors are refused with what to do."""

import json
from pathlib import Path

import pytest

from lmtrain.config.model import Model
from lmtrain.config.model_checks import check_model
from lmtrain.errors import InputError

FILES = {
    "pickle": (
        ["pytorch_model.bin", "training_args.bin"],
        r"only pytorch_model.bin, a pickle, .*--allow-pickle reads",
    ),
    "shards of pickles": (["pytorch_model-00001-of-00002.bin"], r"only pytorch_model-00001-of-00002.bin, a pickle"),
    "llama.cpp": (["model.gguf"], r"only model.gguf; convert it"),
    "keras": (["tf_model.h5", "flax_model.msgpack"], r"only tf_model.h5; convert it"),
    "meta": (["consolidated.00.pth"], r"only consolidated.00.pth; convert it"),
    "no weights": (
        ["optimizer.pt", "training_args.bin", "rng_state.pth"],
        r"there are none; training with --from-scratch starts",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_other_weights_are_refused_with_what_to_do(name: str):
    files, message = FILES[name]
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for file in files:
        Path("model", file).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        check_model("clm", Model(name="model"))


def test_pickled_adapter_is_refused_with_what_to_do():
    for folder, file in (("base", "model.safetensors"), ("adapter", "adapter_model.bin")):
        Path(folder).mkdir()
        Path(folder, file).write_bytes(b"x")
    Path("base/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    with pytest.raises(InputError, match=r"adapter_model.bin is a pickle.*safe_serialization=True"):
        check_model("clm", Model(name="adapter"))
