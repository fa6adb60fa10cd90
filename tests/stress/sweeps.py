"""A sweep of 12 trials with a planted best: left in peace, killed at 5 random moments, and with halving.

`python tests/stress/sweeps.py` prints what benchmarks/sweeps.md says.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = """
objective: clm
model: {name: gpt2, from_scratch: true, config: {n_layer: 1, n_embd: 32, n_head: 2, n_positions: 64}, tokenizer: byte}
data: {train: text.txt, val_split: 0.1}
train: {max_steps: 36, batch_size: 4, save_every: 6}
eval: {samples: 0}
"""
GRID = ["--grid", "train.learning_rate=1e-5,1e-4,1e-3,1e-2", "--grid", "train.weight_decay=0,0.1,10"]
"""The best is a learning rate of 1e-2; a weight decay of 10 spoils it."""

KILLS = 5


def start(folder: str, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lmtrain", "sweep", "recipe.yaml", *GRID, "-o", folder, "--quiet", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})


def outcome(folder: str) -> dict:
    return json.loads(Path(folder, "sweep.json").read_text())


def table(folder: str) -> list:
    return [[entry["settings"], entry["status"], entry["metrics"]] for entry in outcome(folder)["trials"]]


def main() -> None:
    draw = random.Random(9)
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        Path("recipe.yaml").write_text(RECIPE)
        words = ["cat", "dog", "bird", "fish", "tree", "king", "river", "house"]
        Path("text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=12)) for _ in range(300)))
        began = time.monotonic()
        assert start("whole").wait() == 0
        length = time.monotonic() - began
        for number in range(KILLS):
            process = start("killed")
            time.sleep(draw.uniform(0.1, 0.3) * length)
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = len(outcome("killed")["trials"]) if Path("killed/sweep.json").exists() else 0
            print(f"kill {number + 1}: {done} of 12 trials were done", flush=True)
        assert start("killed").wait() == 0
        assert start("halved", "--halving", "3").wait() == 0
        whole, halved = outcome("whole"), outcome("halved")
        steps = [sum(entry["steps"] for entry in one["trials"]) for one in (whole, halved)]
        print(f"best: {whole['best']['settings']}; {length:.0f} s")
        print(f"killed {KILLS} times: the table is {'the same' if table('killed') == table('whole') else 'ANOTHER'}")
        print(
            f"ranking is {'the same' if outcome('killed')['ranking'][0]['mean'] == whole['ranking'][0]['mean'] else 'ANOTHER'}"
        )
        print(f"halving: best {halved['best']['settings']}, {steps[1]} of {steps[0]} steps")


if __name__ == "__main__":
    main()
