"""Seconds from the command to the loss of the first step: lmtrain compared with plain.py.

    python -m benchmarks.start [--rounds 5]

Both run as whole processes with empty caches on the same small model and text, alternating. The clock stops when the
loss of the first step is printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind.\n" * 500


def make_inputs(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    from lmtrain.objectives.objective import OBJECTIVES
    from lmtrain.preprocessing.train_tokenizer import train_tokenizer

    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer("bpe:400", TEXT.splitlines(), OBJECTIVES["clm"].special_tokens)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=2, n_embd=64, n_head=2, n_positions=256, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def first_step(command: list[str], sign: str, caches: Path) -> float:
    """Seconds until the command prints `sign`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(caches / "hf"), "XDG_CACHE_HOME": str(caches)}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    ) as running:
        assert running.stdout
        output = []
        for line in running.stdout:
            output.append(line)
            if sign in line:
                seconds = time.perf_counter() - began
                running.communicate()
                return seconds
    raise RuntimeError("".join(output)[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {"lmtrain": [], "plain": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_inputs(folder)
        python, model, text = [sys.executable, "-u"], str(folder / "model"), str(folder / "text.txt")
        for number in range(rounds):
            ours = [
                *python,
                "-m",
                "lmtrain",
                "clm",
                "--model",
                model,
                "--data",
                text,
                "-L",
                "256",
                "--max-steps",
                "1",
                "--val-split",
                "0",
                "--packing-strategy",
                "blocks",
                "-o",
                str(folder / f"run{number}"),
            ]
            theirs = [*python, str(Path(__file__).with_name("plain.py")), model, text, str(folder / "plain")]
            each = [("lmtrain", ours, "step 1/1"), ("plain", theirs, "'loss'")]
            for name, command, sign in each[:: 1 if number % 2 else -1]:
                times[name].append(first_step(command, sign, Path(tempfile.mkdtemp(dir=folder))))
            print({name: round(found[-1], 2) for name, found in times.items()}, file=sys.stderr)
    medians = [statistics.median(found) for found in times.values()]
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    print(f"command to first step: {medians[0]:.2f} s / {medians[1]:.2f} s, {ratio:.2f} ×, {rounds} rounds")


if __name__ == "__main__":
    main()
