"""What is said about rows that are cut or left out."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, scratch

from lmtrain.preprocessing.dataset import Limits
from lmtrain.training.data_report import cut_warnings

LEDGER = {"rows_read": 60, "rows_used": 50, "rows_truncated": 0, "rows_dropped": 0}


@pytest.mark.parametrize(
    ("kind", "changes", "lengths", "words"),
    [
        ("text", {}, {"max_length": 8}, []),
        ("text", {"rows_truncated": 3}, {"max_length": 8}, ["3 of 50 training rows are cut at --max-length 8"]),
        ("prompt", {"rows_truncated": 3}, {"max_length": 8}, ["3 of 50 training rows are cut at --max-length 8"]),
        (
            "messages",
            {"rows_truncated": 3},
            {"max_length": 8},
            ["3 of 50 training rows are cut at --max-length 8 (6.0%)"],
        ),
        ("prompt", {"rows_dropped": 10}, {"max_length": 8}, ["10 of 60 training rows are left out", "--max-length 8"]),
        (
            "pairs",
            {"rows_truncated": 1200, "rows_used": 5000},
            {"max_source_length": 8, "max_target_length": 4},
            ["1,200 of 5,000 training rows are cut at --max-source-length 8 and --max-target-length 4", "--on-long"],
        ),
    ],
)
def test_rows_that_are_cut_are_counted_with_the_flag(
    kind: str, changes: dict[str, int], lengths: dict[str, int], words: list[str]
):
    warnings = cut_warnings(kind, {"train": {**LEDGER, **changes}}, Limits(None, lengths))
    assert bool(warnings) is bool(words)
    assert all(word in " ".join(warnings) for word in words)


@pytest.mark.parametrize(
    ("objective", "model", "data", "flags", "named"),
    [
        ("clm", "gpt2", "prompts.jsonl", ["-L", 16], "--max-length 16"),
        ("clm", "gpt2", "chats.jsonl", ["-L", 64], "--max-length 64"),
        ("clm", "gpt2", "text.jsonl", ["-L", 4, "--no-packing", "--on-long", "truncate"], "--max-length 4"),
        ("mlm", "bert", "text.jsonl", ["-L", 6, "--no-packing", "--on-long", "truncate"], "--max-length 6"),
        ("seq2seq", "t5", "pairs.jsonl", ["--max-source-length", 4], "--max-source-length 4"),
    ],
)
def test_preview_warns_of_rows_that_are_cut(
    objective: str, model: str, data: str, flags: list[Any], named: str, material: Path
):
    outcome = lmtrain("preview", objective, *scratch(model), "-d", material / data, *flags, "--json")
    assert outcome.code == 0, outcome.err
    ledger = outcome.json["data"]["train"]
    assert f"{ledger['rows_truncated']} of {ledger['rows_used']} training rows are cut at" in outcome.err
    assert named in outcome.err and "--on-long drop" in outcome.err


def test_ledger_of_a_stream_is_shown_at_the_end(material: Path):
    flags = ["--streaming", "--max-steps", 4, "-b", 4, "--shuffle-buffer", 10, "-L", 4, "--no-packing"]
    outcome = lmtrain(
        "clm", *scratch("gpt2"), "-d", material / "text.jsonl", *flags, "--on-long", "truncate", "-o", "run", "--json"
    )
    assert outcome.code == 0, outcome.err
    ledger = outcome.json["data"]["train"]
    before, _, after = outcome.err.partition("step 4/4")
    assert "rows used" not in before and re.search(rf"rows used\W+{ledger['rows_used']}\b", after)
    assert f"{ledger['rows_truncated']} of {ledger['rows_used']} training rows are cut at --max-length 4" in after
