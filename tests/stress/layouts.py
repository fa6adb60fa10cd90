"""The same run in one process, in several (DDP) and sharded (FSDP2): losses, evaluation and samples have to agree.

`python tests/stress/layouts.py` writes benchmarks/layouts.md; `--families gpt2 t5` tries those and writes nothing. Every run is
`lmtrain` in processes of its own, as a user starts it: 20 steps of 16 rows, models without dropout, in float32.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_models import TOKENIZERS, WITHOUT_DROPOUT, as_option

FAMILIES = ("gpt2", "llama", "qwen3", "bert", "modernbert", "t5", "bart", "marian")
STEPS, ROWS, BATCH = 20, 16, 4
LAYOUTS: dict[str, list[str]] = {
    "1 process": [],
    "DDP 2": ["--num-processes", "2"],
    "DDP 4": ["--num-processes", "4"],
    "FSDP2 2": ["--num-processes", "2", "--shard", "fsdp2"],
}
if find_spec("deepspeed"):
    LAYOUTS |= {f"ZeRO-{stage} 2": ["--num-processes", "2", "--shard", f"zero{stage}"] for stage in (2, 3)}
LORA = ["--lora", "--lora-r", "4", "--lora-dropout", "0", "--lr", "3e-4"]
WORDS = [
    "the",
    "a",
    "small",
    "big",
    "red",
    "old",
    "cat",
    "dog",
    "bird",
    "house",
    "river",
    "tree",
    "sees",
    "finds",
    "likes",
    "near",
    "under",
    "quickly",
    "slowly",
    "today",
]

FIRST, CURVE, EVALUATION = 1e-5, 1e-4, 1e-6
"""Relative differences allowed: loss and gradient norm of the first step, losses of all steps, evaluation."""


def write_data(folder: Path) -> None:
    random = Random(1)
    texts = [" ".join(random.choices(WORDS, k=random.randint(3, 30))) for _ in range(240)]
    rows = [{"source": text, "target": " ".join(reversed(text.split()))} for text in texts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def run(family: str, folder: Path, name: str, flags: Sequence[str]) -> dict[str, Any]:
    """Losses, norms, evaluations and samples of a run."""
    objective, sizes = WITHOUT_DROPOUT[family]
    processes = int(flags[flags.index("--num-processes") + 1]) if "--num-processes" in flags else 1
    data = folder / ("pairs.jsonl" if objective == "seq2seq" else "texts.jsonl")
    own = [] if objective == "seq2seq" else ["-L", "32"]
    fresh = [
        "--model",
        family,
        "--from-scratch",
        "--model-config",
        as_option(sizes),
        "--tokenizer",
        TOKENIZERS[objective],
    ]
    command = [objective, *(["--model", "1-process"] if "--lora" in flags else fresh)]
    command += ["--data", str(data), "--val-split", "0.2", *own]
    command += ["-b", str(BATCH), "--grad-accum", str(ROWS // BATCH // processes), "--max-steps", str(STEPS)]
    command += ["--eval-every", "10", "--log-every", "1", "--lr", "1e-3", "--samples", "3", "--dist-timeout", "60s"]
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", *command, *flags, "-o", name, "--quiet"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{family}, {name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": [line["loss"] for line in lines if "loss" in line],
        "norm": [line["grad_norm"] for line in lines if "loss" in line],
        "eval": [line["eval_loss"] for line in lines if "eval_loss" in line],
        "samples": (folder / name / "samples.jsonl").read_text(),
    }


def compared(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """(relative differences, whether all are allowed and the samples are the same)."""

    def gap(name: str, count: int | None = None) -> float:
        pairs = zip(one[name][:count], other[name][:count], strict=True)
        return max(abs(b / a - 1) for a, b in pairs)

    gaps = {"first": max(gap("loss", 1), gap("norm", 1)), "curve": gap("loss"), "evaluation": gap("eval")}
    limits = {"first": FIRST, "curve": CURVE, "evaluation": EVALUATION}
    alike = one["samples"] == other["samples"] and len(one["loss"]) == STEPS and len(one["eval"]) == 3
    return gaps, alike and all(gaps[name] <= limits[name] for name in gaps)


def trials(family: str) -> Iterator[tuple[str, list[str], str]]:
    """(name of a layout, flags, name of the layout that it is compared with)."""
    more: list[tuple[str, list[str]]] = [("", [])]
    if WITHOUT_DROPOUT[family][0] != "seq2seq":
        more = [("", ["--no-packing"]), (" packed", ["--packing"])]
    for suffix, flags in more:
        for name, own in LAYOUTS.items():
            if not suffix or name in ("1 process", "FSDP2 2"):
                yield name + suffix, [*own, *flags], "1 process" + suffix
    for name in ("1 process", "FSDP2 2"):
        yield f"{name} LoRA", [*LAYOUTS[name], *LORA], "1 process LoRA"


def table(family: str) -> Iterator[tuple[str, dict[str, float], bool]]:
    with tempfile.TemporaryDirectory() as made:
        folder, found = Path(made), {}
        write_data(folder)
        for name, flags, reference in trials(family):
            found[name] = run(family, folder, name.replace(" ", "-"), flags)
            if name != reference:
                yield name, *compared(found[reference], found[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    wanted = parser.parse_args().families
    lines, failed = [], 0
    for family in wanted:
        for name, gaps, fine in table(family):
            failed += not fine
            cells = [family, name, *(f"{gap:.0e}" for gap in gaps.values()), "yes" if fine else "**no**"]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    head = "| family | layout | first step | losses | evaluation | agrees, same samples |\n|---|---|---|---|---|---|\n"
    if tuple(wanted) == FAMILIES:
        about = (
            f"# Layouts\n\nWritten by `python tests/stress/layouts.py` ({platform.machine()}, {os.cpu_count()} CPU cores, gloo). "
            f"{STEPS} steps of {ROWS} rows, models without dropout, float32; the largest relative differences from the same run "
            f"in one process. First step: loss and gradient norm, at most {FIRST:g}; losses of all steps: {CURVE:g}; evaluation "
            f"after 0, 10 and 20 steps: {EVALUATION:g}. Batches are padding-free, or packed where the layout says so.\n\n"
        )
        (ROOT / "benchmarks" / "layouts.md").write_text(about + head + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
