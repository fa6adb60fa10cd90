"""Pseudo-perplexity against an independent computation."""

import math
from pathlib import Path

import pytest
import torch
from conftest import sentences
from eval_helpers import evaluated
from transformers import AutoModelForMaskedLM, AutoTokenizer


@torch.no_grad()
def test_pseudo_perplexity_masks_each_token_in_turn(bert: Path):
    lines = sentences(7)
    Path("few.txt").write_text("\n".join(lines) + "\n")
    found = evaluated(
        "--model", bert, "--data", "few.txt", "--no-packing", "--pseudo-perplexity", "--eval-batch-size", 3
    )
    network, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(bert).double().eval(),
        AutoTokenizer.from_pretrained(bert),
    )
    total, count = 0.0, 0
    for line in lines:
        ids = tokenizer(line)["input_ids"]
        for at in range(1, len(ids) - 1):
            masked = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]])
            total -= network(masked).logits[0, at].log_softmax(-1)[ids[at]].item()
            count += 1
    assert found["metrics"]["pseudo_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert "pseudo_perplexity" not in evaluated("--model", bert, "--data", "few.txt", "--no-packing")["metrics"]
