"""The peak memory that `lmtrain plan` tells, beside the one that `lmtrain bench` measures.

    python -m benchmarks.plan [CASE ...]
    python -m benchmarks.plan --limits 2.2e9

Models from scratch, so that nothing is downloaded. Text is made up here.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LORA = "--lora"
"""Needs a model that is trained already: it is saved first."""

GPT = "n_positions=512,n_head=8"
CASES: dict[str, list[str]] = {
    "clm: GPT-2 4 × 256, 16 × 128": ["clm", "gpt2", f"{GPT},n_layer=4,n_embd=256", "-L", "128", "-b", "16"],
    "clm: GPT-2 8 × 512, 16 × 512": ["clm", "gpt2", f"{GPT},n_layer=8,n_embd=512", "-L", "512", "-b", "16"],
    "clm: the same, checkpointing": [
        "clm", "gpt2", f"{GPT},n_layer=8,n_embd=512", "-L", "512", "-b", "16", "--gradient-checkpointing",
    ],
    "clm: GPT-2 12 × 768, 4 × 256": ["clm", "gpt2", f"{GPT},n_layer=12,n_embd=768", "-L", "256", "-b", "4"],
    "clm: Llama 6 × 512, 16 × 256": [
        "clm", "llama",
        "num_hidden_layers=6,hidden_size=512,intermediate_size=1376,num_attention_heads=8,max_position_embeddings=512",
        "-L", "256", "-b", "16",
    ],
    "clm: the same, LoRA": [
        "clm", "llama",
        "num_hidden_layers=6,hidden_size=512,intermediate_size=1376,num_attention_heads=8,max_position_embeddings=512",
        "-L", "256", "-b", "16", LORA,
    ],
    "mlm: BERT 6 × 512, 32 × 256, checkpointing": [
        "mlm", "bert", "num_hidden_layers=6,hidden_size=512,intermediate_size=2048,num_attention_heads=8", "-L", "256", "-b", "32",
        "--gradient-checkpointing",
    ],
    "mlm: BERT 6 × 512, 16 × 256": [
        "mlm", "bert", "num_hidden_layers=6,hidden_size=512,intermediate_size=2048,num_attention_heads=8", "-L", "256", "-b", "16",
    ],
    "mlm: BERT 12 × 768, 8 × 128": [
        "mlm", "bert", "num_hidden_layers=12,hidden_size=768,intermediate_size=3072,num_attention_heads=12", "-L", "128", "-b", "8",
    ],
    "mlm: ModernBERT 6 × 512, 16 × 256": [
        "mlm", "modernbert", "num_hidden_layers=6,hidden_size=512,intermediate_size=768,num_attention_heads=8",
        "-L", "256", "-b", "16",
    ],
    "seq2seq: T5 4 × 512, 16 × 128 → 128": [
        "seq2seq", "t5", "num_layers=4,d_model=512,d_kv=64,d_ff=1024,num_heads=8", "--max-source-length", "128",
        "--max-target-length", "128", "-b", "16",
    ],
    "seq2seq: BART 4 × 512, 16 × 128 → 128": [
        "seq2seq", "bart",
        "encoder_layers=4,decoder_layers=4,d_model=512,encoder_ffn_dim=2048,decoder_ffn_dim=2048,encoder_attention_heads=8,"
        "decoder_attention_heads=8,max_position_embeddings=256",
        "--max-source-length", "128", "--max-target-length", "128", "-b", "16",
    ],
    "seq2seq: T5 4 × 512, 32 × 128 → 128, checkpointing": [
        "seq2seq", "t5", "num_layers=4,d_model=512,d_kv=64,d_ff=1024,num_heads=8", "--max-source-length", "128",
        "--max-target-length", "128", "-b", "32", "--gradient-checkpointing",
    ],
    "seq2seq: T5 6 × 768, 4 × 64 → 64": [
        "seq2seq", "t5", "num_layers=6,d_model=768,d_kv=64,d_ff=2048,num_heads=12", "--max-source-length", "64",
        "--max-target-length", "64", "-b", "4",
    ],
}  # fmt: skip
"""Name -> objective, architecture, configuration, flags."""


def write_data(folder: Path) -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=140)) for _ in range(1500)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    rows = [{"source": text, "target": text[::-1]} for text in texts]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def flags_of(case: str) -> list[str]:
    objective, model, config, *rest = CASES[case]
    data = "pairs.jsonl" if objective == "seq2seq" else "text.txt"
    own = [
        objective,
        "--model",
        model,
        "--from-scratch",
        "--model-config",
        config,
        "--tokenizer",
        "bpe:4000",
        "--data",
        data,
    ]
    return [*own, *rest, "--epochs", "1000", "--quiet"]


def told(folder: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", *arguments, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )
    return json.loads(done.stdout), time.monotonic() - began


TRIED = ("clm: GPT-2 4 × 256, 16 × 128", "mlm: BERT 6 × 512, 16 × 256", "seq2seq: T5 4 × 512, 16 × 128 → 128")
HALVED = "out of memory with"
"""The start of the warning that a batch did not fit."""


def flags_with(case: str, rows: int) -> list[str]:
    flags = flags_of(case)
    flags[flags.index("-b") + 1] = str(rows)
    return [flag for flag in flags if flag != "--quiet"]


def trained(folder: Path, case: str, rows: int, limit: int | None) -> tuple[bool, int]:
    """(whether the batch fitted at once, bytes of address space that were reserved and never touched)."""
    command = [sys.executable, "-m", "lmtrain", *flags_with(case, rows), "--max-steps", "3", "--val-split", "0"]
    command += ["-o", "run", "--overwrite", "--save-every", "1000"]

    def restrict() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, preexec_fn=restrict)
        reserved = 0
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                break
            found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
            if "VmPeak:" in found:
                reserved = found["VmPeak:"] - found["VmHWM:"]
            time.sleep(0.02)
    said = (folder / "log").read_text()
    if process.wait() and HALVED not in said and "memory" not in said:
        raise SystemExit(said)
    return process.returncode == 0 and HALVED not in said, reserved


def limits(folder: Path, memory: int) -> None:
    """The largest batch that plan tells, tried within a limit of the address space; twice as many rows must not fit.

    The limit is `memory` and what a process with one row a batch reserves without touching it (libraries, stacks, arenas).
    """
    print("| configuration | memory, GB | largest batch | it fits | twice as many rows fit |\n|---|---|---|---|---|")
    for case in TRIED:
        rows = told(folder, "plan", *flags_of(case), "--memory", f"{memory / 1e9}GB")[0]["largest_batch_size"]
        _, reserved = trained(folder, case, 1, None)
        answers = [trained(folder, case, size, memory + reserved)[0] for size in (rows, 2 * rows)]
        shown = " | ".join("yes" if answer else "no" for answer in answers)
        print(f"| {case} | {memory / 1e9:.2f} | {rows} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument(
        "--limits", type=float, metavar="BYTES", help="try the largest batch in so much memory instead"
    )
    given = parser.parse_args()
    if given.limits:
        with tempfile.TemporaryDirectory() as made:
            write_data(Path(made))
            limits(Path(made), int(given.limits))
        return
    wanted = given.cases
    print(
        "| configuration | parameters | plan, GB | measured, GB | plan / measured | plan took |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_data(folder)
        for case in [name for name in CASES if not wanted or any(part in name for part in wanted)]:
            flags = flags_of(case)
            if LORA in flags:
                whole = [flag for flag in flags if flag != LORA]
                told(folder, *whole, "--max-steps", "0", "-o", "base", "--val-split", "0.01")
                rest = flags[flags.index("--data") :]
                flags = [flags[0], "--model", "base", *rest]
            measured, _ = told(folder, "bench", *flags, "--seconds", "6")
            planned, seconds = told(folder, "plan", *flags)
            estimate, real = planned["peak_memory_bytes"], measured["peak_memory_bytes"]
            print(
                f"| {case} | {planned['parameters'] / 1e6:.1f} M | {estimate / 1e9:.2f} | {real / 1e9:.2f} | "
                f"{estimate / real:.2f} | {seconds:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
