"""`lmtrain merge`: merge a LoRA adapter into its base model, for tools that do not know adapters."""

from pathlib import Path

from lmtrain.config.model import Model
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import atomic_folder, storage_error


def merge(model: Model, objective: str, output_dir: Path, console: Console) -> None:
    """Write the merged model and its tokenizer to the new folder `output_dir`, complete or not at all.

    Raises InputError for an adapter that does not fit its base, StorageError if the folder cannot be written.
    """
    with console.working("loading the adapter and its base"):
        config = load_config(model, objective)
        tokenizer, notes, warnings = load_tokenizer(model)
        network, more = load_network(model, config, tokenizer, OBJECTIVES[objective].auto_model)
    for line in [*notes, *more]:
        console.note(line)
    for line in warnings:
        console.warn(line)
    try:
        with console.working("writing"), atomic_folder(output_dir) as folder:
            network.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise storage_error(output_dir, error) from None
    console.note(f"the model is in {output_dir} · next: lmtrain generate --model {output_dir} --prompt …")
