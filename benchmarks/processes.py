"""Time per step of one process with two threads, and of two processes with one thread each.

    python -m benchmarks.processes [--rounds 5] [--sizes small medium]

The same model, rows per step and threads in total, as whole runs, alternating. `searching` lets DistributedDataParallel search for
unused parameters in every step, as it did for every model before lmtrain found out which ones need it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 60
CASES: dict[str, tuple[int, int, list[str]]] = {
    "1 process × 2 threads": (1, 2, []),
    "DDP, 2 processes × 1 thread": (2, 1, []),
    "the same, searching": (2, 1, ["--set", "train.ddp_find_unused_parameters=true"]),
    "FSDP2, 2 processes × 1 thread": (2, 1, ["--shard", "fsdp2"]),
}
"""Name -> (processes, threads of each, flags)."""

SIZES = {
    "small": "n_layer=4,n_embd=256,n_head=4",
    "medium": "n_layer=6,n_embd=512,n_head=8",
}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all today.\n\n" * 4000


def milliseconds_per_step(folder: Path, size: str, case: str) -> float:
    """Of the steps after the first ten, by the tokens per second that the run logs."""
    processes, threads, flags = CASES[case]
    command = ["clm", "--model", "gpt2", "--from-scratch", "--model-config", SIZES[size], "--tokenizer", "byte"]
    command += ["--data", "text.txt", "-L", "128", "-b", str(16 // processes)]
    command += [
        "--max-steps",
        str(STEPS),
        "--log-every",
        "10",
        "--save-every",
        "1000",
        "--val-split",
        "0",
        "--overwrite",
    ]
    command += ["--num-processes", str(processes), "-o", "run", "--quiet", *flags]
    subprocess.run(
        [sys.executable, "-m", "lmtrain", *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        check=True,
    )
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["step"] / line["tokens_per_second"] for line in lines if "tokens_per_second" in line}
    tokens = json.loads((folder / "run" / "results.json").read_text())["train"]["tokens_seen"] / STEPS
    return (seconds[STEPS] - seconds[10]) * tokens / (STEPS - 10) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    given = parser.parse_args()
    rounds = given.rounds
    print("| model | layout | ms per step | to one process |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "text.txt").write_text(TEXT)
        for size in given.sizes:
            found: dict[str, list[float]] = {case: [] for case in CASES}
            for number in range(rounds):
                for case in CASES if number % 2 == 0 else reversed(CASES):
                    found[case].append(milliseconds_per_step(folder, size, case))
            alone = statistics.median(found["1 process × 2 threads"])
            for case, times in found.items():
                middle = statistics.median(times)
                print(f"| {size} | {case} | {middle:.1f} | {middle / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
