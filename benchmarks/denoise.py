"""Does span corruption teach anything? A small T5 from nothing, pre-trained on plain text, fills held-out spans.

    python benchmarks/denoise.py --data book.txt --data another.txt --steps 1000

Counted is how many tokens of the missing spans (sentinels and end mark left out) are the model's best guess, given the
source and the target so far, among the tokens of text. Beside it: always guessing the commonest token, the commonest one after the token before, and
the same model before its first step. Results: denoise.md.
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
from lmtrain.objectives.seq2seq import collator
from lmtrain.preprocessing.batch import IGNORED
from lmtrain.preprocessing.dataset import Limits
from lmtrain.runtime.console import Console

MODEL = "d_model=128,d_kv=32,d_ff=512,num_layers=2,num_decoder_layers=2,num_heads=4,dropout_rate=0.0"


def train(folder: Path, data: list[str], steps: int) -> None:
    flags = ["seq2seq", "--from-scratch", "--model", "t5", "--model-config", MODEL, "--tokenizer", "unigram:2000",
             "--denoise", "span-corruption", "--max-source-length", "128", "-b", "16", "--lr", "3e-3",
             "--max-steps", str(steps), "--warmup-steps", "100", "--eval-every", "100000", "--val-split", "0.05",
             "--metric", "exact_match", "--samples", "0", "--set", "run.preflight=false", "-o", str(folder)]  # fmt: skip
    app([*flags, *(part for name in data for part in ("--data", name)), "--quiet"], standalone_mode=False)


def scored(folder: Path) -> dict[str, float]:
    """Accuracy and loss on the tokens of held-out spans, and the accuracies of guessing by frequency."""
    recipe = build(RECIPES["seq2seq"], in_sections(read_yaml(folder / "recipe.yaml"), RECIPES["seq2seq"], ""), "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    sides = corpus.Corpus(recipe.data, recipe.train.seed, Cache(None, Console(quiet=True))).sides
    limits = Limits(None, {})
    held = OBJECTIVES["seq2seq"].encode(sides.held_out, tokenizer, recipe.data, limits, True)
    text = OBJECTIVES["seq2seq"].encode(sides.train, tokenizer, recipe.data, limits, False).columns["input_ids"].values
    special = np.array(tokenizer.all_special_ids)
    size = len(tokenizer)
    commonest = np.bincount(text, minlength=size).argmax()
    following = np.full(size, commonest)
    bigrams, counts = np.unique(text[:-1].astype(np.int64) * size + text[1:], return_counts=True)
    for at in np.argsort(counts, kind="stable"):
        following[bigrams[at] // size] = bigrams[at] % size
    collate, hits, nll = collator(tokenizer, recipe.data, 0), np.zeros(4), 0.0
    with torch.no_grad():
        for start in range(0, len(held), 32):
            batch = collate([held[None, row] for row in range(start, min(start + 32, len(held)))])
            labels = batch.pop("labels")
            logits = network(**batch, labels=labels.clamp(min=0)).logits
            logits[..., special] = -torch.inf  # that the span goes on is given: nobody guesses its end
            asked = torch.from_numpy((labels.numpy() != IGNORED) & ~np.isin(labels.numpy(), special))
            truth, before = labels[asked].numpy(), labels.roll(1, 1)[asked].numpy()
            guessed = logits.argmax(-1)[asked].numpy()
            nll += torch.nn.functional.cross_entropy(logits[asked], labels[asked], reduction="sum").item()
            hits += (
                len(truth),
                (guessed == truth).sum(),
                (truth == commonest).sum(),
                (following[before] == truth).sum(),
            )
    total, model, frequency, bigram = hits.tolist()
    return {"span_tokens": total, "accuracy": model / total, "commonest": frequency / total, "bigram": bigram / total,
            "loss": nll / total}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name, steps in (("untrained", 0), ("trained", asked.steps)):
            train(Path(place, name), asked.data or ["example:python-docs"], steps)
            told = json.loads(Path(place, name, "results.json").read_text())["train"]
            print(name, {"seconds": round(told["seconds"]), **scored(Path(place, name))}, flush=True)


if __name__ == "__main__":
    main()
