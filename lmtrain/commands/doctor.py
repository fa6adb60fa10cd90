"""`lmtrain doctor`: tests on this machine that loss and resume are exact, through the code that training runs.

Fourteen rows of unequal length make one optimiser step, divided into micro-batches and processes in four ways, the last
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
from lmtrain.runs import checkpoint
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.console import Console, Silent, format_number
from lmtrain.runtime.device import environment
from lmtrain.runtime.upstream import differences
from lmtrain.training.assembly import Assembly, assemble
from lmtrain.training.run import stepping

TOLERANCE = 1e-5
ROWS = 14
LAYOUTS = {"16×1": (16, 1, 1), "4×4": (4, 4, 1), "2×8": (2, 8, 1), "2 processes × 8": (8, 1, 2)}
"""Name -> (rows per device, micro-batches, processes)."""

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


def recipe_for(family: str, folder: Path, **train: Any) -> Recipe:
    """A recipe that trains a tiny model of the family on the made-up rows in `folder`."""
    objective, sizes = FAMILIES[family]
    kind, options = ROWS_OF[objective]
    document = {
        "model": {"name": family, "from_scratch": True, "config": sizes, "tokenizer": "byte"},
        "data": {"train": [str(folder / f"{kind}.jsonl")], "val_split": 0.0, **options},
        "train": {"seed": 1, "log_every": 1, "precision": "fp32", **train},
        "run": {"cache": False},
    }
    return build(RECIPES[objective], document, "doctor")


def assembled(recipe: Recipe, folder: Path, continued: ResumePoint | None = None) -> Assembly:
    """The run of a recipe, assembled as for training, without notes."""
    console = Silent()
    corpus = Corpus(recipe.data, recipe.train.seed, Cache.of(recipe.run, console))
    return assemble(recipe, corpus, RunFolder(folder), continued or ResumePoint(), console, saved=False)


def first_step(family: str, folder: Path, batch_size: int, micro_batches: int) -> tuple[float, float]:
    """(loss, gradient norm) of the first optimiser step, as Trainer logs them."""
    recipe = recipe_for(family, folder, batch_size=batch_size, grad_accum=micro_batches, max_steps=1)
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
        causal = type(network).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM")
        yield (logits[:-1], labels[0, 1:]) if causal else (logits, labels[0])
        return
    start = torch.full((1, 1), config.decoder_start_token_id)
    before = torch.cat([start, labels[:, :-1]], dim=1)
    output = network(input_ids=ids, decoder_input_ids=before.where(before >= 0, torch.tensor(config.pad_token_id)))
    yield output.logits[0], labels[0]
    if "logits_ngram" in output:  # ProphetNet learns the tokens after the next one too
        for stream in output.logits_ngram[0]:
            yield stream, labels[0]


def losses() -> dict[str, dict[str, tuple[float, float]]]:
    """Family -> layout -> (loss, gradient norm); the layout `float64` is the reference."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder)
        for family in FAMILIES:
            table[family] = {"float64": reference(family, folder)}
            for layout, (batch_size, micro_batches, processes) in LAYOUTS.items():
                if processes == 1:
                    table[family][layout] = first_step(family, folder, batch_size, micro_batches)
        for layout, (_, _, processes) in LAYOUTS.items():
            if processes > 1:
                for family, found in _in_processes(layout, processes, folder).items():
                    table[family][layout] = found
    return table


def _in_processes(layout: str, processes: int, folder: Path) -> dict[str, tuple[float, float]]:
    target = folder / "steps.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "lmtrain.commands.doctor", layout, str(folder), str(target)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise RuntimeError(f"{processes} processes could not be started:\n{done.stderr}")
    return {family: (loss, norm) for family, (loss, norm) in json.loads(target.read_text()).items()}


def _work(layout: str, folder: str, target: str) -> None:
    """One of several processes: the first step of every family."""
    batch_size, micro_batches, _ = LAYOUTS[layout]
    found = {family: first_step(family, Path(folder), batch_size, micro_batches) for family in FAMILIES}
    if os.environ["RANK"] == "0":
        Path(target).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def difference(found: dict[str, tuple[float, float]]) -> float:
    """The largest relative difference of loss and gradient norm from the reference, over layouts."""
    loss, norm = found["float64"]
    return max(max(abs(a / loss - 1), abs(b / norm - 1)) for layout, (a, b) in found.items() if layout != "float64")


RESUMED = {"clm": "gpt2", "mlm": "bert", "seq2seq": "t5"}
"""Objective -> the family whose resume is tested."""


def resumes() -> dict[str, bool]:
    """Objective -> whether six steps, interrupted after three, end in the same weights as six steps at once."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder))
        return {objective: _resumes(family, Path(folder)) for objective, family in RESUMED.items()}


def _resumes(family: str, folder: Path) -> bool:
    run = folder / family
    run.mkdir()
    whole = _six_steps(family, folder, run, ResumePoint())
    resumed = _six_steps(family, folder, run, ResumePoint(checkpoint.path_of(RunFolder(run).checkpoints, 3)))
    return all(torch.equal(whole[name], resumed[name]) for name in whole)


def _six_steps(family: str, folder: Path, run: Path, continued: ResumePoint) -> dict[str, torch.Tensor]:
    recipe = recipe_for(family, folder, batch_size=4, max_steps=6, save_every=3, learning_rate=1e-2)
    trainer = assembled(recipe, run, continued).trainer
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    if continued.checkpoint:
        trainer.recall(continued.checkpoint)
    with stepping(trainer, recipe):
        trainer.train(str(continued.checkpoint) if continued.checkpoint else None)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def report(console: Console) -> dict[str, Any]:
    """Everything that doctor reports, as one document."""
    console.note("Loss and gradient of ten families in four layouts, then resume: about a minute.")
    table = losses()
    resumed = resumes()
    families = {
        family: {"difference": difference(found), "exact": difference(found) <= TOLERANCE, "figures": found}
        for family, found in table.items()
    }
    return {
        "environment": environment(),
        "loss": families,
        "resume": resumed,
        "upstream": differences(),
        "exact": all(entry["exact"] for entry in families.values()) and all(resumed.values()),
    }


def show(document: dict[str, Any], console: Console) -> None:
    rows = [(name, str(value)) for name, value in document["environment"].items()]
    for family, entry in document["loss"].items():
        loss, norm = entry["figures"]["float64"]
        verdict = "exact" if entry["exact"] else "NOT EXACT"
        agreement = f"{', '.join(LAYOUTS)} and float64 differ by {entry['difference']:.0e}: {verdict}"
        rows.append((f"loss, {family}", f"{format_number(loss)}, gradient {format_number(norm)}: {agreement}"))
    for objective, exact in document["resume"].items():
        rows.append((f"resume, {objective}", "bit for bit" if exact else "NOT EXACT"))
    rows += [
        ("upstream", sentence) for sentence in document["upstream"] or ["every name that lmtrain relies on is there"]
    ]
    console.result(document, rows, title="lmtrain doctor")


if __name__ == "__main__":
    _work(*sys.argv[1:])
