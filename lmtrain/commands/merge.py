"""`lmtrain merge`: merge a LoRA adapter into its base model, for tools that do not know adapters."""

import shutil
from pathlib import Path

import torch

from lmtrain.config.architectures import adapter_base
from lmtrain.config.model import Model
from lmtrain.modeling import merging
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.runs.file_names import RECIPE, RESULTS
from lmtrain.runs.saved_run import noted_labels
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import atomic_folder, storage_error


def merge(model: Model, objective: str, output_dir: Path, console: Console) -> None:
    """Write the merged model and its tokenizer to the new folder `output_dir`, complete or not at all.

    The model has the type of its base's weights. Recipe and results of the run go with it, because `generate` and `eval`
    ask a model as its run did. Raises InputError for an adapter that does not fit its base, StorageError if the folder
    cannot be written.
    """
    with console.working("loading the adapter and its base"):
        config = load_config(model, objective)
        tokenizer, notes, warnings = load_tokenizer(model)
        labels, kind = noted_labels(model.name)
        fitted = OBJECTIVES[objective].fitted(config, kind, labels)
        network, more = load_network(model, config, tokenizer, fitted.auto_model, head=fitted.head)
        dtype = merging.saved_dtype(str(adapter_base(model.name)))
    notes += more
    if dtype != torch.float32:
        network.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to` without its types
        notes.append(f"written in {str(dtype).removeprefix('torch.')}, as its base")
    for line in notes:
        console.note(line)
    for line in warnings:
        console.warn(line)
    try:
        with console.working("writing"), atomic_folder(output_dir) as folder:
            network.save_pretrained(folder)
            if getattr(config, "tie_word_embeddings", False):
                merging.check_saved(network, folder, model.name)
            tokenizer.save_pretrained(folder)
            for name in (RECIPE, RESULTS):
                if (Path(model.name) / name).is_file():
                    shutil.copyfile(Path(model.name) / name, folder / name)
    except OSError as error:
        raise storage_error(output_dir, error) from None
    console.note(f"the model is in {output_dir} · next: lmtrain generate --model {output_dir} --prompt …")
