"""The promises about loss and resume, tested on this machine: what `lmtrain doctor` prints.

Fourteen rows of unequal length make one optimiser step, cut into micro-batches and processes in four ways, the last
micro-batch short. Loss and gradient norm have to agree, with one another and with a computation in float64, one row
at a time, that knows nothing of batches or Trainer, nor of padding (but for ProphetNet, which reads it: see
loss.reads_padding; there every target is padded to the same length).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from lmtrain.config.model import Model
from lmtrain.config.recipe import RECIPES
from lmtrain.data.rows import Rows
from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.network import load_network
from lmtrain.modeling.padding_free import choose_padding_free as choose_joining
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.batch import IGNORED, Batch
from lmtrain.preprocessing.dataset import Examples, Limits, longest_lengths
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.train_tokenizer import train_tokenizer as train_tokenizer
from lmtrain.runtime.console import Console, figure
from lmtrain.runtime.device import environment
from lmtrain.training.trainer import ExactTrainer

TOLERANCE = 1e-5
ROWS = 14
LAYOUTS = {"16×1": (16, 1, 1), "4×4": (4, 4, 1), "2×8": (2, 8, 1), "2 processes × 8": (8, 1, 2)}
"""Name -> (rows per device, micro-batches, processes)."""

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0,
         "attention_dropout": 0.0, "activation_dropout": 0.0}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("clm", {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "llama": ("clm", {**_BERT, "num_key_value_heads": 2}),
    "bert": ("mlm", {**_BERT, **_NO_DROPOUT}),
    "roberta": ("mlm", {**_BERT, **_NO_DROPOUT}),
    "modernbert": ("mlm", {**_BERT, "layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}),
    "t5": ("seq2seq", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}),
    "bart": ("seq2seq", _BART),
    "marian": ("seq2seq", _BART),
    "pegasus": ("seq2seq", _BART),
    "prophetnet": ("seq2seq", {"hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2,
                               "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2,
                               "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "ngram": 2, "dropout": 0.0,
                               "attention_dropout": 0.0, "activation_dropout": 0.0}),
}  # fmt: skip
"""Family -> (objective, a configuration of two layers without dropout)."""


def _case(family: str) -> tuple[PreTrainedModel, Examples, Any, TokenLoss]:
    """(network, examples, collate, loss) of a family, the same in every process."""
    name, sizes = FAMILIES[family]
    objective = OBJECTIVES[name]
    random = np.random.default_rng(1)
    texts = ["".join(map(chr, random.integers(97, 123, size=n))) for n in random.integers(3, 40, size=2 * ROWS)]
    values: list[Any] = list(zip(texts[:ROWS], texts[ROWS:], strict=True)) if name == "seq2seq" else texts[:ROWS]
    rows = Rows.of("pairs" if name == "seq2seq" else "text", values)
    tokenizer = train_tokenizer("byte", [], objective.frame)
    section = RECIPES[name].model_fields["data"].annotation
    options = {} if name == "seq2seq" else {"packing": False}
    data = section(train=["made up"], **options, **({"mask_probability": 0.3} if name == "mlm" else {}))  # type: ignore[misc]
    set_seed(1)
    model = Model(name=family, from_scratch=True, config=sizes)
    network, _ = load_network(model, AutoConfig.for_model(family), tokenizer, objective.auto_model)
    limits = Limits(64, {})
    examples = objective.encode(rows, tokenizer, data, limits, False)
    collate, loss = objective.fit(network, examples, tokenizer, data, 1, limits)
    return network, examples, collate, objective.fit_to_train(network, examples, loss, collate, 0.0)


def _step(family: str, batch_size: int, micro_batches: int) -> tuple[float, float]:
    """(loss, gradient norm) of the first optimiser step, as Trainer logs them."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            family, output_dir=folder, per_device_train_batch_size=batch_size, max_steps=1, logging_steps=1,
            gradient_accumulation_steps=micro_batches, save_strategy="no", use_cpu=not torch.accelerator.is_available(),
        )  # fmt: skip
        trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return first["loss"], first["grad_norm"]


def _trainer(family: str, **settings: Any) -> ExactTrainer:
    network, examples, collate, loss = _case(family)
    joining = choose_joining(network, loss, collate, longest_lengths(examples, Limits(None, {}), False))
    loss = replace(loss, apart=joining.apart) if joining else loss
    arguments = TrainingArguments(
        **settings, seed=1, report_to="none", remove_unused_columns=False, disable_tqdm=True, bf16=False
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = ExactTrainer(model=network, args=arguments, train_dataset=examples, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return trainer.prepare(loss, None, _batches(examples, trainer.args), joining=joining)


def _batches(examples: Examples, arguments: TrainingArguments) -> BatchSampler:
    process = arguments.process_index, arguments.world_size
    return BatchSampler(examples, arguments.seed, arguments.train_batch_size, process=process)


def _reference(family: str) -> tuple[float, float]:
    """(loss, gradient norm) in float64, from one row at a time, without padding."""
    network, examples, collate, _ = _case(family)
    network.double().eval()
    nll, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(examples)):
        batch = collate([examples[0, row]])
        for logits, targets in _predictions(network, batch):
            scored = (targets != IGNORED).nonzero()[:, 0]
            nll = nll - torch.log_softmax(logits[scored], dim=-1)[range(len(scored)), targets[scored]].sum()
            count += len(scored)
    loss = nll / count
    loss.backward()
    squares = sum(float((p.grad**2).sum()) for p in network.parameters() if p.grad is not None)
    return loss.item(), squares**0.5


def _predictions(network: Any, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits [length, vocabulary], the label that each position is to predict) of one row, for each stream."""
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
    for family in FAMILIES:
        table[family] = {"float64": _reference(family)}
        for layout, (batch_size, micro_batches, processes) in LAYOUTS.items():
            if processes == 1:
                table[family][layout] = _step(family, batch_size, micro_batches)
    for layout, (_, _, processes) in LAYOUTS.items():
        if processes > 1:
            for family, figures in _in_processes(layout, processes).items():
                table[family][layout] = figures
    return table


def _in_processes(layout: str, processes: int) -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "figures.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, "-m", "lmtrain.exactness", layout, str(target)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{processes} processes could not be started:\n{done.stderr}")
        return {family: tuple(pair) for family, pair in json.loads(target.read_text()).items()}


def _work(layout: str, target: str) -> None:
    """One of several processes: the first step of every family."""
    batch_size, micro_batches, _ = LAYOUTS[layout]
    figures = {family: _step(family, batch_size, micro_batches) for family in FAMILIES}
    if os.environ["RANK"] == "0":
        Path(target).write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


def difference(figures: dict[str, tuple[float, float]]) -> float:
    """The largest relative difference from the reference, over layouts, of loss and gradient norm."""
    loss, norm = figures["float64"]
    return max(max(abs(a / loss - 1), abs(b / norm - 1)) for layout, (a, b) in figures.items() if layout != "float64")


RESUMED = {"clm": "gpt2", "mlm": "bert", "seq2seq": "t5"}


def resumes() -> dict[str, bool]:
    """Objective -> whether six steps with a break after three end in the very weights of six steps at once."""
    return {objective: _resumes(family) for objective, family in RESUMED.items()}


def _resumes(family: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        whole = _six_steps(family, folder, None)
        resumed = _six_steps(family, folder, str(Path(folder) / "checkpoint-3"))
    return all(torch.equal(whole[name], resumed[name]) for name in whole)


def _six_steps(family: str, folder: str, checkpoint: str | None) -> dict[str, torch.Tensor]:
    trainer = _trainer(
        family, output_dir=folder, per_device_train_batch_size=4, num_train_epochs=2, max_steps=6, save_steps=3,
        use_cpu=True, learning_rate=1e-2,
    )  # fmt: skip
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    if checkpoint:
        trainer.recall(Path(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def report(console: Console) -> dict[str, Any]:
    """Everything that doctor says, as one document."""
    console.note("Loss and gradient of ten families in four layouts, then resume: about a minute.")
    table = losses()
    resumed = resumes()
    families = {
        family: {"difference": difference(figures), "exact": difference(figures) <= TOLERANCE, "figures": figures}
        for family, figures in table.items()
    }
    return {
        "environment": environment(),
        "loss": families,
        "resume": resumed,
        "exact": all(entry["exact"] for entry in families.values()) and all(resumed.values()),
    }


def show(document: dict[str, Any], console: Console) -> None:
    rows = [(name, str(value)) for name, value in document["environment"].items()]
    for family, entry in document["loss"].items():
        loss, norm = entry["figures"]["float64"]
        verdict = "exact" if entry["exact"] else "NOT EXACT"
        rows.append((f"loss, {family}", f"{figure(loss)}, gradient {figure(norm)}: {', '.join(LAYOUTS)} and float64 "
                                        f"differ by {entry['difference']:.0e}: {verdict}"))  # fmt: skip
    for objective, exact in document["resume"].items():
        rows.append((f"resume, {objective}", "bit for bit" if exact else "NOT EXACT"))
    console.result(document, rows, title="lmtrain doctor")


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2])
