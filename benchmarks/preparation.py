"""Seconds from a text file to packed rows of token ids: lmtrain compared with two passes of `datasets.map`.

    python benchmarks/preparation.py [--tokenizer FOLDER] [--megabytes 30] [--rounds 5] [FILE …]

The baseline does what transformers' run_clm.py does: load the file as lines, tokenize them in one map, concatenate and
cut them in another, with the defaults of both. Every measurement runs in a process of its own with empty caches, the
two alternating; the second start of lmtrain finds the cache of the first. The tokens of lmtrain are compared with those
that the tokenizer gives the whole text in one call; the lines of the baseline may have others. Without files the text
is the documentation that comes with Python; without a tokenizer one is trained on it.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTH = 1024


def baseline(text: str, folder: str) -> dict[str, Any]:
    import time

    import datasets
    from plain import two_maps
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    imported, loading = resident(), time.perf_counter()
    raw = datasets.load_dataset("text", data_files=text, split="train", keep_linebreaks=True)
    started = time.perf_counter()
    tokenised, grouped = two_maps(raw, tokenizer, LENGTH)
    seconds = time.perf_counter() - started
    kept = sum(map(len, grouped["input_ids"]))
    ids = [i for row in tokenised["input_ids"] for i in row]
    return {
        "seconds": seconds,
        "with_loading": seconds + started - loading,
        **_measurements(ids, imported),
        "kept": kept,
    }


def lmtrain(text: str, folder: str) -> dict[str, Any]:
    import time

    from lmtrain.config.data import ClmData
    from lmtrain.config.model import Model
    from lmtrain.config.recipe import RECIPES
    from lmtrain.data.cache import Cache
    from lmtrain.data.corpus import Corpus
    from lmtrain.modeling.tokenizer import load_tokenizer
    from lmtrain.objectives.objective import OBJECTIVES
    from lmtrain.preprocessing.dataset import Limits
    from lmtrain.runtime.console import Console
    from lmtrain.training.datasets import prepare_data

    recipe = RECIPES["clm"](
        model=Model(name=folder),
        data=ClmData(train=[text], val_split=0, max_length=LENGTH, packing_strategy="blocks"),
    )
    tokenizer = load_tokenizer(Model(name=folder)).tokenizer
    imported, started = resident(), time.perf_counter()
    corpus = Corpus(recipe.data, 1, Cache.of(recipe.run, Console(quiet=True)))
    corpus.check()
    objective = OBJECTIVES["clm"]
    collator = objective.collator(tokenizer, recipe.data, 1)
    prepared = prepare_data(corpus, objective, tokenizer, collator, recipe.data, Limits(LENGTH, {}))
    seconds = time.perf_counter() - started
    ids = prepared.train.columns["input_ids"].values[:-1]  # the end token, which the script does not add
    return {"seconds": seconds, "with_loading": seconds, **_measurements(ids, imported), "kept": len(ids)}


def whole(text: str, folder: str) -> dict[str, Any]:
    import time

    from transformers import AutoTokenizer

    tokenizer, content = AutoTokenizer.from_pretrained(folder), Path(text).read_text(encoding="utf-8")
    imported, started = resident(), time.perf_counter()
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "with_loading": seconds, **_measurements(ids, imported), "kept": len(ids)}


def resident() -> float:
    """Resident memory of this process in MB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def _measurements(ids: Any, imported: float) -> dict[str, Any]:
    import hashlib
    import resource

    import numpy as np

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the ids are copied
    ids = np.asarray(ids, np.int64)
    return {
        "tokens": len(ids),
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "megabytes": peak,
        "own": peak - imported,
    }


def measure(what: str, text: Path, folder: Path, caches: Path) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(caches / "hf"), "XDG_CACHE_HOME": str(caches)}
    command = [sys.executable, __file__, "--one", what, "--tokenizer", str(folder), str(text)]
    before, began = _busy(), os.times().elapsed
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    others = (_busy() - before) - json.loads(done.stdout)["cpu_seconds"]
    return {**json.loads(done.stdout), "others": max(others, 0.0) / (os.times().elapsed - began)}


def _busy() -> float:
    """CPU seconds that this machine has spent on all processes."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def material(folder: Path, files: list[str], megabytes: float) -> Path:
    """Write a text of that size: the files or Python's documentation repeated, its lines shuffled anew each time."""
    if files:
        lines = [
            line for file in files for line in Path(file).read_text(encoding="utf-8-sig").splitlines(keepends=True)
        ]
    else:
        from pydoc_data.topics import topics

        lines = [line for name in sorted(topics) for line in topics[name].splitlines(keepends=True)]
    target, drawn, size = folder / "text.txt", random.Random(0), 0
    with target.open("w", encoding="utf-8") as stream:
        while size < megabytes * 1e6:
            for line in lines:
                size += stream.write(line if line.endswith("\n") else line + "\n")
            drawn.shuffle(lines)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--tokenizer")
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        result = {"baseline": baseline, "lmtrain": lmtrain, "whole": whole}[given.one](given.files[0], given.tokenizer)
        times = os.times()
        print(json.dumps({**result, "cpu_seconds": times.user + times.system + times.children_user}))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text = material(folder, given.files, given.megabytes)
        tokenizer = _tokenizer(folder, text, given.tokenizer)
        reference = measure("whole", text, tokenizer, Path(tempfile.mkdtemp(dir=folder)))
        rounds = []
        for number in range(given.rounds):
            order = ["baseline", "lmtrain"] if number % 2 else ["lmtrain", "baseline"]
            caches = {what: Path(tempfile.mkdtemp(dir=folder)) for what in order}
            found = {what: measure(what, text, tokenizer, caches[what]) for what in order}
            found["second"] = measure("lmtrain", text, tokenizer, caches["lmtrain"])
            rounds.append(found)
            print(
                json.dumps({n: {k: v for k, v in f.items() if k != "sha256"} for n, f in found.items()}),
                file=sys.stderr,
            )
        print(table(rounds, reference, text.stat().st_size))


def _tokenizer(folder: Path, text: Path, name: str | None) -> Path:
    """The folder of a tokenizer that both can load."""
    from tokenizers import processors

    from lmtrain.config.model import Model
    from lmtrain.modeling.tokenizer import load_tokenizer
    from lmtrain.objectives.objective import OBJECTIVES
    from lmtrain.preprocessing.train_tokenizer import train_tokenizer

    if name:
        made: Any = load_tokenizer(Model(name=name)).tokenizer
    else:
        made = train_tokenizer(
            "bpe:8000", text.read_text(encoding="utf-8").splitlines()[:20_000], OBJECTIVES["clm"].special_tokens
        )
        # As GPT-2's: the script would begin every line anew otherwise.
        made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    made.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def table(rounds: list[dict[str, Any]], reference: dict[str, Any], size: int) -> str:
    def median(what: str, name: str) -> float:
        return statistics.median(found[what][name] for found in rounds)

    same = all(found[way]["sha256"] == reference["sha256"] for found in rounds for way in ("lmtrain", "second"))
    first, second, maps = median("lmtrain", "seconds"), median("second", "seconds"), median("baseline", "seconds")
    rows = [
        ("two map passes", maps, "baseline", ""),
        ("two map passes, and loading the file", median("baseline", "with_loading"), "baseline", ""),
        ("the whole text in one call", reference["seconds"], "whole", ""),
        ("lmtrain, from the file", first, "lmtrain", f"{maps / first:.2f} × the two passes"),
        ("lmtrain, second start", second, "second", f"{first / second:.0f} × the first"),
    ]
    lines = [
        f"{size / 1e6:.1f} MB, {reference['tokens']:,} tokens, {len(rounds)} rounds, medians; tokens "
        f"{'identical to' if same else 'NOT'} those of the whole text in one call; the script makes "
        f"{rounds[0]['baseline']['tokens']:,} of the lines and keeps {rounds[0]['baseline']['kept']:,}; other processes took "
        f"{max(f['others'] for found in rounds for f in found.values()):.2f} cores at most",
        "",
        "| | seconds | peak MB | above the imports and the tokenizer | |",
        "|---|---|---|---|---|",
    ]
    memory = {
        way: f"{median(way, 'megabytes'):.0f} | {median(way, 'own'):.0f}" for way in ("baseline", "lmtrain", "second")
    }
    memory["whole"] = f"{reference['megabytes']:.0f} | {reference['own']:.0f}"
    share, own = (median("lmtrain", name) / median("baseline", name) for name in ("megabytes", "own"))
    lines += [f"| {name} | {s:.2f} | {memory[way]} | {note} |" for name, s, way, note in rows]
    return "\n".join(
        [*lines, "", f"memory: {share:.2f} × that of the two passes, above the imports and the tokenizer {own:.2f} ×"]
    )


if __name__ == "__main__":
    main()
