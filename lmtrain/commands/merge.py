"""`lmtrain merge`: a LoRA adapter and its base become one model, which any tool loads."""

import shutil
from pathlib import Path

from lmtrain.config.model import Model
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.runtime.console import Console
from lmtrain.runtime.files import storage_error


def merge(model: Model, objective: str, output_dir: Path, console: Console) -> None:
    """Write the merged model and its tokenizer to a new folder, whole or not at all.

    Raises InputError for an adapter that does not fit its base, StorageError where nothing can be written.
    """
    with console.working("loading the adapter and its base"):
        config = load_config(model, objective)
        tokenizer, _ = load_tokenizer(model)
        network, notes = load_network(model, config, tokenizer, OBJECTIVES[objective].auto_model)
    for line in notes:
        console.note(line)
    aside = output_dir.with_name(f".{output_dir.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        with console.working("writing"):
            network.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        aside.replace(output_dir)
    except OSError as error:
        raise storage_error(output_dir, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    console.note(f"the model is in {output_dir} · next: lmtrain generate --model {output_dir} --prompt …")
