"""All that is measured side by side with plain Hugging Face parts: steps, start, preparation.

    python -m benchmarks [--rounds 5] [--pairs multi30k/train]

Each is a program of its own as well: benchmarks.speed, benchmarks.start, benchmarks/preparation.py. Other work on the
machine spoils the figures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--pairs", help="as for benchmarks.speed")
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
