"""Accuracy of span corruption: a small T5, pre-trained from scratch on plain text, predicts held-out spans.

    python benchmarks/denoise.py --data book.txt --data another.txt --steps 1000

The accuracy is the share of tokens in the removed spans (without sentinels and end token) that are the model's most
likely text token, given the source and the target so far. Baselines: the most frequent token, the most frequent token
after the previous one (bigram), and the same model before its first step. Results: denoise.md.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.cli.app import app
from lmtrain.config.loading import build, in_sections, read_yaml
from lmtrain.config.recipe import RECIPES
from lmtrain.data import corpus
from lmtrain.data.cache import Cache
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Limits
from lmtrain.runtime.console import Console

MODEL = "d_model=128,d_kv=32,d_ff=512,num_layers=2,num_decoder_layers=2,num_heads=4,dropout_rate=0.0"


def train(folder: Path, data: list[str], steps: int) -> None:
    flags = [
        "seq2seq",
        "--from-scratch",
        "--model",
        "t5",
        "--model-config",
        MODEL,
        "--tokenizer",
        "unigram:2000",
        "--denoise",
        "span-corruption",
        "--max-source-length",
        "128",
        "-b",
        "16",
        "--lr",
        "3e-3",
        "--max-steps",
        str(steps),
        "--warmup-steps",
        "100",
        "--eval-every",
        "100000",
        "--val-split",
        "0.05",
        "--metric",
        "exact_match",
        "--samples",
        "0",
        "--set",
        "run.preflight=false",
        "-o",
        str(folder),
    ]
    app([*flags, *(part for name in data for part in ("--data", name)), "--quiet"], standalone_mode=False)


def score(folder: Path) -> dict[str, float]:
    """Accuracy and loss on the tokens of held-out spans, and the accuracies of the frequency baselines."""
    recipe = build(RECIPES["seq2seq"], in_sections(read_yaml(folder / "recipe.yaml"), RECIPES["seq2seq"], ""), "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    splits = corpus.Corpus(recipe.data, recipe.train.seed, Cache(None, Console(quiet=True))).splits
    assert splits.held_out is not None
    objective, limits = OBJECTIVES["seq2seq"], Limits(None, {})
    held_out = objective.encode(splits.held_out, tokenizer, recipe.data, limits, True)
    text = objective.encode(splits.train, tokenizer, recipe.data, limits, False).columns["input_ids"].values
    special = np.array(tokenizer.all_special_ids)
    size = len(tokenizer)
    most_frequent = np.bincount(text, minlength=size).argmax()
    following = np.full(size, most_frequent)
    bigrams, counts = np.unique(text[:-1].astype(np.int64) * size + text[1:], return_counts=True)
    for at in np.argsort(counts, kind="stable"):
        following[bigrams[at] // size] = bigrams[at] % size
    collate, hits, nll = objective.collator(tokenizer, recipe.data, 0), np.zeros(4), 0.0
    with torch.no_grad():
        for start in range(0, len(held_out), 32):
            batch = collate([held_out[None, row] for row in range(start, min(start + 32, len(held_out)))])
            labels = batch.pop("labels")
            logits = network(**batch, labels=labels.clamp(min=0)).logits
            logits[..., special] = -torch.inf  # only text tokens are predicted, the ends of spans are given
            scored = torch.from_numpy((labels.numpy() != IGNORED) & ~np.isin(labels.numpy(), special))
            truth, before = labels[scored].numpy(), labels.roll(1, 1)[scored].numpy()
            predicted = logits.argmax(-1)[scored].numpy()
            nll += torch.nn.functional.cross_entropy(logits[scored], labels[scored], reduction="sum").item()
            hits += (
                len(truth),
                (predicted == truth).sum(),
                (truth == most_frequent).sum(),
                (following[before] == truth).sum(),
            )
    total, model, frequency, bigram = hits.tolist()
    return {
        "span_tokens": total,
        "accuracy": model / total,
        "most_frequent": frequency / total,
        "bigram": bigram / total,
        "loss": nll / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, steps in (("untrained", 0), ("trained", options.steps)):
            train(Path(folder, name), options.data or ["example:python-docs"], steps)
            results = json.loads(Path(folder, name, "results.json").read_text())["train"]
            print(name, {"seconds": round(results["seconds"]), **score(Path(folder, name))}, flush=True)


if __name__ == "__main__":
    main()
