"""Training speed: the same model, weights and tokens, trained by lmtrain and by a plain Trainer.

    python -m benchmarks.speed [CASE …] [--rounds 5] [--pairs multi30k/train] [--profile]

The baseline does what transformers' example scripts do: Trainer with its defaults and the stock collators, which pad
texts to the longest of the batch, and random batches for translation. Both run in processes of their own, alternating;
each first measures the rate of a large matrix product. The output shows medians over the rounds. Every case is also
trained for 50 steps without dropout, to compare the losses. "Of the matrix rate" is the arithmetic that the tokens
without padding need (lmtrain bench) as a share of that rate. --profile shows instead where lmtrain spends its time,
--held-out the loss of a translation model after --epochs.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.config.data import MlmData
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.sampler import EpochOrder

HERE = Path(__file__).parent
WARM = 3
"""Warm-up steps, not counted."""

PROFILED = 8
"""Steps that --profile measures."""


@dataclass(frozen=True)
class Case:
    objective: str
    architecture: str
    sizes: dict[str, Any]
    words: int
    """Entries of the vocabulary."""
    batch: int
    length: tuple[int, int]
    """Fewest and most words of a text."""
    dropout: tuple[str, ...]
    """Names of the dropout rates."""
    flags: tuple[str, ...] = ()
    """Further flags of lmtrain."""
    must: float = 1.0
    goal: float = 1.0
    memory: float | None = None
    steps: int = 20
    rate: float = 0.1
    """Dropout rate."""


GPT2 = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
CASES = {
    "clm-small": Case(
        "clm", "gpt2", {"n_layer": 6, "n_embd": 256, "n_head": 4, "n_positions": 256}, 8_000, 8, (255, 255), GPT2,
        ("--no-packing",), must=1.2, goal=1.5, memory=0.75,
    ),
    "clm-large-vocabulary": Case(
        "clm", "gpt2", {"n_layer": 4, "n_embd": 768, "n_head": 12, "n_positions": 512}, 50_257, 4, (511, 511), GPT2,
        ("--no-packing",), must=1.4, goal=2.0, memory=0.8,
    ),
    "mlm-small": Case(
        "mlm", "bert", {"num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
                        "max_position_embeddings": 256}, 8_000, 8, (254, 254), BERT, ("--no-packing",), must=1.3, goal=1.6,
    ),
    "mlm-large-vocabulary": Case(
        "mlm", "bert", {"num_hidden_layers": 4, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
                        "max_position_embeddings": 512}, 30_522, 8, (254, 254), BERT, ("--no-packing",), must=1.5, goal=2.0,
    ),
    "seq2seq-translation": Case(
        "seq2seq", "marian", {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
                              "decoder_attention_heads": 4, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024,
                              "max_position_embeddings": 128}, 8_000, 32, (4, 40), ("dropout",),
        (), must=1.6, goal=2.5,
    ),
    "clm-short-documents": Case(
        "clm", "gpt2", {"n_layer": 6, "n_embd": 256, "n_head": 4, "n_positions": 256}, 8_000, 32, (5, 60), GPT2,
        ("-L", "256", "-b", "8"), must=2.5, goal=5.0,
    ),
    "clm-single-texts": Case(  # as many of the same short documents in a step as the baseline has
        "clm", "gpt2", {"n_layer": 6, "n_embd": 256, "n_head": 4, "n_positions": 256}, 8_000, 32, (5, 60), GPT2,
        ("-L", "256", "--no-packing"),
    ),
    "clm-shakespeare-char": Case(
        "clm", "gpt2", {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 64}, 65, 12, (63, 63), GPT2,
        ("--no-packing",), must=1 / 0.9, goal=1.2, steps=300, rate=0.0,
    ),
}  # fmt: skip


# --- model and data -------------------------------------------------------------------------------------------------


def make_inputs(case: Case, folder: Path, dropout: bool, pairs: str | None = None) -> None:
    """Write model, tokenizer and data for both to a folder; `pairs`: STEM of STEM.de and STEM.en, for translation."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, PreTrainedTokenizerFast, set_seed

    from lmtrain.preprocessing.train_tokenizer import train_tokenizer

    special = OBJECTIVES[case.objective].special_tokens
    words = [*special.tokens.values(), *(f"w{number}" for number in range(case.words - len(special.tokens)))]
    backend = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=special.tokens["unk_token"])
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "$A" if case.objective == "clm" else special.template
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, backend.token_to_id(t)) for t in special.tokens.values() if t in template]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **special.tokens
    )
    rates = dict.fromkeys(case.dropout, case.rate if dropout else 0.0)
    ids = {"vocab_size": case.words, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if case.objective == "seq2seq":
        ids |= {
            "decoder_vocab_size": case.words,
            "decoder_start_token_id": tokenizer.pad_token_id,
            "scale_embedding": True,
            "forced_eos_token_id": tokenizer.eos_token_id,
        }
    real = pairs and case.objective == "seq2seq"
    if real:
        languages = [Path(f"{pairs}.{language}").read_text(encoding="utf-8").splitlines() for language in ("de", "en")]
        tokenizer = train_tokenizer(f"bpe:{case.words}", [*languages[0], *languages[1]], special)
    set_seed(0)
    config = AutoConfig.for_model(case.architecture, **case.sizes, **rates, **ids)
    OBJECTIVES[case.objective].auto_model.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    chance = random.Random(1)
    ordinary = words[len(special.tokens) :]
    weights = [1 / (n + 10) for n in range(len(ordinary))]
    rows_at_least, (least, most) = 4096 if case.length[1] < 100 else 640, case.length
    # Many short texts and a few long ones, like sentences and reviews.
    lengths = [min(least + int(chance.expovariate(1 / 15)), most) for _ in range(rows_at_least)]

    def text(length: int) -> str:
        return " ".join(chance.choices(ordinary, weights, k=length))

    rows = [{"text": text(n)} for n in lengths]
    if case.objective == "seq2seq":
        rows = [{"source": text(n), "target": text(max(n + chance.randint(-3, 3), 1))} for n in lengths]
    if real:
        rows = [{"source": source, "target": target} for source, target in zip(*languages, strict=True)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- the two trainers ----------------------------------------------------------------------------------------------------


def ends(seen: Any) -> Any:
    """A callback that records when each step ended, before anything is saved, and what was `seen` by then."""
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ENDS.append(time.perf_counter())
            tokens, slots = seen()
            TOKENS.append(tokens)
            SLOTS.append(slots)
            if PROFILER and len(ENDS) == WARM:
                PROFILER[0].start()
            if PROFILER and len(ENDS) == WARM + PROFILED:
                PROFILER[0].stop()

    return Ends()


def by_lmtrain(case: Case, folder: Path, steps: int, alike: bool) -> None:
    """Train with lmtrain; `alike`: with the batches of the baseline, to compare the losses."""
    from lmtrain.cli.app import app
    from lmtrain.training.trainer import ExactTrainer

    build = ExactTrainer.__init__

    def observed(self: Any, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        TRAINER[:] = [self]
        self.add_callback(ends(lambda: (int(self.tokens[0]), int(self.tokens[2]))))

    ExactTrainer.__init__ = observed  # type: ignore[method-assign]
    flags = [
        case.objective,
        "--model",
        folder / "model",
        "--data",
        folder / "data.jsonl",
        "--val-split",
        0,
        "-b",
        case.batch,
        "--max-steps",
        steps,
        "--lr",
        LEARNING_RATE[0],
        "--log-every",
        1 if alike else 10,
        "--save-every",
        10**6,
        "--no-preflight",
        "--no-cache",
        "-q",
        "-o",
        folder / "run",
        "--overwrite",
        "--set",
        "train.dataloader_num_workers=0",
        *(PLAIN[case.objective] if alike else case.flags),
    ]
    app([str(flag) for flag in flags], standalone_mode=False)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    LOSSES.extend(line["loss"] for line in lines if "loss" in line)


PLAIN = {
    "clm": ["--no-packing"],
    "mlm": ["--no-packing"],
    "seq2seq": ["--max-source-length", "128", "--max-target-length", "128"],
}


def by_trainer(case: Case, folder: Path, steps: int, alike: bool) -> None:
    """Train as transformers' example scripts do; `alike`: in the order and with the masks of lmtrain."""
    from datasets import load_dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    network = OBJECTIVES[case.objective].auto_model.from_pretrained(folder / "model")
    data = load_dataset("json", data_files=str(folder / "data.jsonl"), split="train")
    if case.objective == "seq2seq":
        data = data.map(
            lambda rows: tokenizer(rows["source"], text_target=rows["target"]),
            batched=True,
            remove_columns=data.column_names,
        )
        collator: Any = DataCollatorForSeq2Seq(tokenizer, model=network)
    else:
        end = [tokenizer.eos_token_id] if case.objective == "clm" else []
        data = data.map(
            lambda rows: {"input_ids": [ids + end for ids in tokenizer(rows["text"])["input_ids"]]},
            batched=True,
            remove_columns=data.column_names,
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=case.objective == "mlm")
    if alike:
        data = data.select(EpochOrder(np.zeros(len(data), np.int64), 42).of(0).tolist())
        stock, collator = collator, lambda rows: _alike(case, tokenizer, stock, rows)
        data = data.add_column("row", EpochOrder(np.zeros(len(data), np.int64), 42).of(0).tolist())
    seen = [0, 0]

    def counted(rows: list[Any]) -> Any:
        batch = collator(rows)
        own = [batch["attention_mask"]] + ([batch["labels"] != -100] if case.objective == "seq2seq" else [])
        seen[0] += sum(int(mask.sum()) for mask in own)
        seen[1] += sum(mask.numel() for mask in own)
        return batch

    arguments = TrainingArguments(
        str(folder / "baseline"),
        per_device_train_batch_size=case.batch,
        max_steps=steps,
        learning_rate=LEARNING_RATE[0],
        logging_steps=1 if alike else 10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_num_workers=0,
        seed=42,
        remove_unused_columns=False,
        train_sampling_strategy="sequential" if alike else "random",
    )
    trainer = Trainer(network, arguments, data_collator=counted, train_dataset=data, callbacks=[ends(lambda: seen)])
    trainer.train()
    LOSSES.extend(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    trainer.save_model(str(folder / "by-trainer"))
    tokenizer.save_pretrained(folder / "by-trainer")


def _alike(case: Case, tokenizer: Any, stock: Any, rows: list[dict[str, Any]]) -> Any:
    """The batch with lmtrain's masks, and without the label of a text's first token, which no position predicts."""
    numbers = [row.pop("row") for row in rows]
    if case.objective == "mlm":
        section = MlmData(train=["made up"])
        masked = OBJECTIVES["mlm"].collator(tokenizer, section, 42)
        return masked(
            [
                {
                    "input_ids": np.array(row["input_ids"]),
                    "lengths": np.array([len(row["input_ids"])]),
                    "numbers": np.array([number]),
                    "epoch": 0,
                    "progress": 0.0,
                }
                for number, row in zip(numbers, rows, strict=True)
            ]
        )
    batch = stock(rows)
    if case.objective == "clm":
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][:, 0] = -100
    return batch


LEARNING_RATE = [1e-4]
TRAINER: list[Any] = []
PROFILER: list[Any] = []
ENDS: list[float] = []
TOKENS: list[int] = []
SLOTS: list[int] = []
LOSSES: list[float] = []
"""After each step: the time, and the tokens and slots (with padding) so far; the loss of each step."""

WAYS = {"lmtrain": by_lmtrain, "trainer": by_trainer}


def work(name: str, way: str, folder: Path, steps: int, alike: bool) -> dict[str, Any]:
    """Run one trainer once, in this process."""
    import psutil
    import torch

    from lmtrain.commands.bench import flops_per_token, matrix_rate

    began, case = time.perf_counter(), CASES[name]
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    before, own = psutil.cpu_times(), psutil.Process().cpu_times()
    sys.stdout, out = sys.stderr, sys.stdout
    WAYS[way](case, folder, steps, alike)
    sys.stdout = out
    after, own_after = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(getattr(after, n) - getattr(before, n) for n in ("user", "system"))
    ours = sum(getattr(own_after, n) - getattr(own, n) for n in ("user", "system"))
    seconds = ENDS[-1] - ENDS[WARM - 1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_second": (TOKENS[-1] - TOKENS[WARM - 1]) / seconds,
        "step": statistics.median(b - a for a, b in pairwise(ENDS[WARM - 1 :])),
        "padding": 1 - TOKENS[-1] / SLOTS[-1],
        "memory": memory,
        "rate": rate,
        "flops_per_token": flops_per_token(TRAINER[0]) if TRAINER else None,
        "others": max(busy - ours, 0) / (time.perf_counter() - began),
        "losses": LOSSES,
    }


# --- side by side ----------------------------------------------------------------------------------------------------


def once(name: str, way: str, folder: Path, steps: int, alike: bool = False, rate: float = 1e-4) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed",
        "--work",
        name,
        way,
        str(folder),
        "--steps",
        str(steps),
        "--learning-rate",
        str(rate),
    ]
    command += ["--alike"] if alike else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=HERE.parent)
    if done.returncode:
        raise RuntimeError(f"{name} by {way}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Measurements:
    name: str
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {way: [] for way in WAYS})
    gap: float | None = None

    def median(self, way: str, what: str) -> float:
        return statistics.median(found[what] for found in self.rounds[way])

    def ratio(self, what: str) -> float:
        """Median over the rounds of lmtrain's value divided by that of the baseline in the same round."""
        pairs = zip(self.rounds["lmtrain"], self.rounds["trainer"], strict=True)
        return statistics.median(ours[what] / theirs[what] for ours, theirs in pairs)

    def share(self, way: str) -> float:
        """Share of the highest rate of a large matrix product in any of the rounds."""
        highest = max(found["rate"] for rounds in self.rounds.values() for found in rounds)
        return self.median("lmtrain", "flops_per_token") * self.median(way, "tokens_per_second") / highest

    def line(self) -> str:
        case = CASES[self.name]
        memory = f" (≤ {case.memory})" if case.memory else ""
        gap = "" if self.gap is None else f"{self.gap:.1e}"
        cells = [
            self.name,
            f"**{self.ratio('tokens_per_second'):.2f}**",
            f"{case.must:.3g} / {case.goal}",
            f"{self.median('lmtrain', 'tokens_per_second'):,.0f} / {self.median('trainer', 'tokens_per_second'):,.0f}",
            f"{self.share('lmtrain'):.0%} / {self.share('trainer'):.0%}",
            f"{self.ratio('memory'):.2f}{memory}",
            f"{self.median('lmtrain', 'padding'):.1%} / {self.median('trainer', 'padding'):.1%}",
            gap,
            f"{max(found['others'] for found in self.rounds['lmtrain'] + self.rounds['trainer']):.0%}",
        ]
        return "| " + " | ".join(cells) + " |"


HEAD = """| case | useful tokens/s, × | must / goal | lmtrain / Trainer | of the matrix rate | peak memory, × | padding | losses differ by | other processes' CPU, at most |
|---|---|---|---|---|---|---|---|---|"""


def side_by_side(name: str, rounds: int, steps: int | None, losses: bool, pairs: str | None) -> Measurements:
    found = Measurements(name)
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(CASES[name], Path(folder), True, pairs)
        for number in range(rounds):
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                found.rounds[way].append(once(name, way, Path(folder), steps or CASES[name].steps))
                print(name, way, {k: v for k, v in found.rounds[way][-1].items() if k != "losses"}, file=sys.stderr)
        if losses:
            make_inputs(CASES[name], Path(folder), False, pairs)
            ours, theirs = (once(name, way, Path(folder), 50, alike=True)["losses"] for way in WAYS)
            found.gap = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return found


# --- loss after some epochs ----------------------------------------------------------------------------------------------


def compare_learning(name: str, pairs: str, held_out: str, epochs: int, rate: float) -> str:
    """One line: eval_loss on the pairs HELD_OUT.de and HELD_OUT.en after `epochs` epochs of either trainer.

    One epoch is trained in the same order without dropout, several in an order of each trainer's own with dropout.
    """
    case, alike = CASES[name], epochs == 1
    languages = [Path(f"{held_out}.{language}").read_text(encoding="utf-8").splitlines() for language in ("de", "en")]
    rows = [{"source": source, "target": target} for source, target in zip(*languages, strict=True)]
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_inputs(case, folder, not alike, pairs)
        (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        steps = epochs * -(-len((folder / "data.jsonl").read_text().splitlines()) // case.batch)
        for way, model in (("lmtrain", "run"), ("trainer", "by-trainer")):
            once(name, way, folder, steps, alike, rate)
            flags = ["--model", str(folder / model), "--data", str(folder / "held-out.jsonl"), "--json"]
            done = subprocess.run([sys.executable, "-m", "lmtrain", "eval", *flags], capture_output=True, check=True)
            found[way] = json.loads(done.stdout)["metrics"]["eval_loss"]
    order = "in the same order, without dropout" if alike else "each in its own order"
    losses = ", ".join(f"{way} {loss:.4f}" for way, loss in found.items())
    return f"{name}: eval_loss after {epochs} epochs ({steps:,} steps, {order}): {losses}"


# --- profile ---------------------------------------------------------------------------------------------

KINDS = {
    "products": r"aten::(mm|addmm_?|bmm|baddbmm)$",
    "attention": r"aten::(_scaled_dot_product.*|_softmax.*|index_select)|_Attention.*|_Moved.*",
    "dropout": r"_Dropout.*|aten::ge",
    "the head's cross entropy": r"_CrossEntropy.*|aten::(exp_|_log_softmax.*|gather)",
    "optimiser and norm": r"aten::(_fused_adamw_|_foreach.*|linalg_vector_norm)",
    "norms and activations": r"aten::(native_layer_norm.*|gelu.*|tanh.*|silu.*|relu.*)",
    "moving and filling": r"aten::(copy_|fill_|zero_|cat|index.*|_index.*|embedding.*)",
}
"""Category -> pattern of its operations. Other operations count as `other`, the rest as `between operations`."""


def profile_case(name: str, pairs: str | None) -> str:
    """One line: the shares of lmtrain's time in a case, measured in this process."""
    import re

    from torch.profiler import ProfilerActivity, profile

    PROFILER[:] = [profile(activities=[ProfilerActivity.CPU])]
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(CASES[name], Path(folder), True, pairs)
        by_lmtrain(CASES[name], Path(folder), WARM + PROFILED, False)
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in PROFILER[0].key_averages():
        kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, event.key)), "other")
        found[kind] += event.self_cpu_time_total / 1e6
    seconds = ENDS[-1] - ENDS[WARM - 1]
    found["between operations"] = max(seconds - sum(found.values()), 0.0)
    return f"{name}: " + ", ".join(f"{kind} {took / seconds:.0%}" for kind, took in found.items())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="default: those of the case")
    parser.add_argument("--pairs", help="STEM of STEM.de and STEM.en for translation; default: random words")
    parser.add_argument("--work", nargs=3)
    parser.add_argument("--alike", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--held-out", help="STEM of held-out pairs: compare the loss after --epochs instead")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--losses", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if options.work:
        name, way, folder = options.work
        LEARNING_RATE[0] = options.learning_rate
        print(json.dumps(work(name, way, Path(folder), options.steps, options.alike)))
        return
    if options.profile:
        for name in options.cases or CASES:
            print(profile_case(name, options.pairs), flush=True)
        return
    if options.held_out:
        for name in options.cases:
            print(
                compare_learning(name, options.pairs, options.held_out, options.epochs, options.learning_rate),
                flush=True,
            )
        return
    print(HEAD)
    for name in options.cases or CASES:
        print(side_by_side(name, options.rounds, options.steps, options.losses, options.pairs).line(), flush=True)


if __name__ == "__main__":
    main()
