"""The first step of tiny models in several layouts, through the code that training runs, against a reference in float64.

Fourteen rows of unequal length make one optimiser step, divided into micro-batches and processes in five ways, the last
micro-batch short. Loss and gradient norm have to agree with one another and with a computation in float64, one row at a
time, that knows nothing of batches, padding or Trainer. (ProphetNet depends on padding, see loss.depends_on_padding: there
every target is padded to the same length.)
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmtrain.config.loading import build
from lmtrain.config.recipe import RECIPES, Recipe
from lmtrain.data.cache import Cache
from lmtrain.data.corpus import Corpus
from lmtrain.preprocessing.batch import IGNORED, Batch
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.console import Silent
from lmtrain.training.assembly import Assembly, assemble
from lmtrain.training.run import stepping

TOLERANCE = 1e-5
ROWS = 14
LAYOUTS = {"16×1": (16, 1), "4×4": (4, 4), "2×8": (2, 8)}
"""Name -> (rows per device, micro-batches) in one process."""

SHARDS = {"DDP": "none", "FSDP2": "fsdp2"}
"""Name of a layout of several processes -> the value of --shard."""

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "clm",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": ("clm", {**_BERT, "num_key_value_heads": 2}),
    "qwen3": ("clm", {**_BERT, "num_key_value_heads": 2, "head_dim": 16}),
    "bert": ("mlm", {**_BERT, **_NO_DROPOUT}),
    "roberta": ("mlm", {**_BERT, **_NO_DROPOUT}),
    "modernbert": ("mlm", {**_BERT, "layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}),
    "t5": ("seq2seq", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}),
    "bart": ("seq2seq", _BART),
    "marian": ("seq2seq", _BART),
    "pegasus": ("seq2seq", _BART),
    "prophetnet": (
        "seq2seq",
        {
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "ngram": 2,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
        },
    ),
}
"""Family -> (objective, a configuration of two layers without dropout)."""


ROWS_OF: dict[str, tuple[str, dict[str, Any]]] = {
    "clm": ("text", {"packing": False, "max_length": 64}),
    "mlm": ("text", {"packing": False, "max_length": 64, "mask_probability": 0.3}),
    "seq2seq": ("pairs", {}),
}
"""Objective -> (the kind of its rows, options of its data section)."""


def write_rows(folder: Path) -> None:
    """The made-up rows, as text.jsonl and pairs.jsonl."""
    random = np.random.default_rng(1)
    texts = ["".join(map(chr, random.integers(97, 123, size=n))) for n in random.integers(3, 40, size=2 * ROWS)]
    rows = {
        "text": [{"text": text} for text in texts[:ROWS]],
        "pairs": [{"source": a, "target": b} for a, b in zip(texts[:ROWS], texts[ROWS:], strict=True)],
    }
    for kind, records in rows.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")


def recipe_for(family: str, folder: Path, shard: str = "none", **train: Any) -> Recipe:
    """A recipe that trains a tiny model of the family on the made-up rows in `folder`."""
    objective, sizes = FAMILIES[family]
    kind, options = ROWS_OF[objective]
    document = {
        "model": {"name": family, "from_scratch": True, "config": sizes, "tokenizer": "byte"},
        "data": {"train": [str(folder / f"{kind}.jsonl")], "val_split": 0.0, **options},
        "train": {"seed": 1, "log_every": 1, "precision": "fp32", **train},
        "run": {"cache": False, "shard": shard},
    }
    return build(RECIPES[objective], document, "doctor")


def assembled(recipe: Recipe, folder: Path, continued: ResumePoint | None = None) -> Assembly:
    """The run of a recipe, assembled as for training, without notes."""
    console = Silent()
    corpus = Corpus(recipe.data, recipe.train.seed, Cache.of(recipe.run, console))
    return assemble(recipe, corpus, RunFolder(folder), continued or ResumePoint(), console, saved=False)


def first_step(
    family: str, folder: Path, batch_size: int, micro_batches: int, shard: str = "none"
) -> tuple[float, float]:
    """(loss, gradient norm) of the first optimiser step, as Trainer logs them."""
    recipe = recipe_for(family, folder, shard, batch_size=batch_size, grad_accum=micro_batches, max_steps=1)
    with tempfile.TemporaryDirectory() as run:
        trainer = assembled(recipe, Path(run)).trainer
        with stepping(trainer, recipe):
            trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return first["loss"], first["grad_norm"]


def reference(family: str, folder: Path) -> tuple[float, float]:
    """(loss, gradient norm) in float64, from one row at a time, without padding."""
    with tempfile.TemporaryDirectory() as run:
        made = assembled(recipe_for(family, folder, max_steps=1), Path(run))
    network, collator = made.trainer.model.cpu(), made.trainer.data_collator
    network.double().eval()
    nll, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(made.data.train)):
        batch = collator([made.data.train[0, row]])
        for logits, targets in _predictions(network, batch):
            scored = (targets != IGNORED).nonzero()[:, 0]
            nll = nll - torch.log_softmax(logits[scored], dim=-1)[range(len(scored)), targets[scored]].sum()
            count += len(scored)
    loss = nll / count
    loss.backward()
    squares = sum(float((p.grad**2).sum()) for p in network.parameters() if p.grad is not None)
    return loss.item(), squares**0.5


def _predictions(network: Any, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits [length, vocabulary], the label that each position predicts) of one row, for each stream."""
    config, labels = network.config, batch["labels"]
    ids = batch["input_ids"][:, : int(batch["attention_mask"].sum())]
    if not config.is_encoder_decoder:
        logits = network(input_ids=ids).logits[0]
        causal = type(network).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM")
        yield (logits[:-1], labels[0, 1:]) if causal else (logits, labels[0])
        return
    start = torch.full((1, 1), config.decoder_start_token_id)
    before = torch.cat([start, labels[:, :-1]], dim=1)
    output = network(input_ids=ids, decoder_input_ids=before.where(before >= 0, torch.tensor(config.pad_token_id)))
    yield output.logits[0], labels[0]
    if "logits_ngram" in output:  # ProphetNet learns the tokens after the next one too
        for stream in output.logits_ngram[0]:
            yield stream, labels[0]


def losses(processes: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Family -> layout -> (loss, gradient norm); the layout `float64` is the reference."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder)
        for family in FAMILIES:
            steps = {layout: first_step(family, folder, *sizes) for layout, sizes in LAYOUTS.items()}
            table[family] = {"float64": reference(family, folder), **steps}
        for family, found in _in_processes(processes, folder).items():
            table[family] |= found
    return table


def _in_processes(processes: int, folder: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Family -> layout of several processes -> (loss, gradient norm)."""
    target = folder / "steps.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "lmtrain.commands.exactness", str(folder), str(target)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise RuntimeError(f"{processes} processes could not be started:\n{done.stderr}")
    found = json.loads(target.read_text())
    return {family: {n: (loss, norm) for n, (loss, norm) in steps.items()} for family, steps in found.items()}


def _work(folder: str, target: str) -> None:
    """One of several processes: the first step of every family, whose rows they share."""
    processes = int(os.environ["WORLD_SIZE"])
    rows = -(-ROWS // processes)
    found = {
        family: {
            f"{name} {processes}": first_step(family, Path(folder), rows, 1, shard) for name, shard in SHARDS.items()
        }
        for family in FAMILIES
    }
    if os.environ["RANK"] == "0":
        Path(target).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def difference(found: dict[str, tuple[float, float]]) -> float:
    """The largest relative difference of loss and gradient norm from the reference, over layouts."""
    loss, norm = found["float64"]
    return max(max(abs(a / loss - 1), abs(b / norm - 1)) for layout, (a, b) in found.items() if layout != "float64")


if __name__ == "__main__":
    _work(*sys.argv[1:])
