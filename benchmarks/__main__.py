"""Run all benchmarks that compare lmtrain with plain Hugging Face code: training speed, start-up, data preparation.

    python -m benchmarks [--rounds 5] [--pairs multi30k/train]

Each is also a program by itself: benchmarks.speed, benchmarks.start, benchmarks/preparation.py. Leave the machine
otherwise idle, or the measurements are wrong.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--pairs", help="see benchmarks.speed")
    given = parser.parse_args()
    rounds = ["--rounds", given.rounds]
    pairs = ["--pairs", given.pairs] if given.pairs else []
    for program in (
        ["-m", "benchmarks.speed", *rounds, *pairs],
        ["-m", "benchmarks.start", *rounds],
        [str(HERE / "preparation.py"), *rounds],
    ):
        subprocess.run([sys.executable, *program], check=True, cwd=HERE.parent)


if __name__ == "__main__":
    main()
