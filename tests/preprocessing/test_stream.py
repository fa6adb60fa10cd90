"""Streams: every row once per epoch, rows and ledger equal to those of the data in memory, resume bit for bit."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, scratch, sentences, trained
from safetensors.torch import load_file

from lmtrain.config.recipe import RECIPES
from lmtrain.data.ledger import total
from lmtrain.data.reading import RowReader, load
from lmtrain.data.sources import open_tables
from lmtrain.objectives.clm import CausalCollator
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import train_tokenizer
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.sampler import count_trained
from lmtrain.preprocessing.stream import Stream, StreamState

OWN = {name: train_tokenizer.train_tokenizer("byte", [], OBJECTIVES[name].special_tokens) for name in ("clm", "mlm")}


def write(lines: int = 100) -> None:
    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} {t}"}) + "\n" for i, t in enumerate(sentences(lines)))
    )
    Path("b.jsonl").write_text('{"text": ""}\n' + "".join(json.dumps({"text": f"b{i}"}) + "\n" for i in range(30)))
    Path("c.txt").write_text("".join(f"{t}\n" for t in sentences(lines)))


def stream_of(
    files: list[str], chunk: int, process: tuple[int, int] = (0, 1), objective: str = "clm", **options: Any
) -> tuple[Stream, Any]:
    data = RECIPES[objective].model_fields["data"].annotation(train=files, max_length=24, **options)

    def encoded(rows):
        examples = OBJECTIVES[objective].encode(rows, OWN[objective], data, Limits(None, {}), False)
        return examples.packed(24) if data.packs_documents else examples

    return Stream(
        RowReader(open_tables(files, data), data), encoded, CausalCollator(0, None), 1, 3, chunk, process
    ), data


def texts_of(batches: list) -> Counter:
    """How often each text (a piece of a document) occurs in the batches."""
    found: Counter = Counter()
    for batch in batches:
        documents = batch.get("documents", batch["attention_mask"])
        for ids, numbers in zip(batch["input_ids"], documents, strict=True):
            found.update(tuple(ids[numbers == n].tolist()) for n in numbers.unique().tolist() if n)
    return found


OPTIONS = [{"packing": False}, {"packing_strategy": "best-fit"}, {"packing_strategy": "blocks"}]


@pytest.mark.parametrize("files", [["a.jsonl", "b.jsonl"], ["c.txt"], ["c.txt", "c.txt"]])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("objective", "chunk"), [("clm", 1), ("clm", 7), ("clm", 1000), ("mlm", 1), ("mlm", 7)])
def test_an_epoch_has_the_rows_and_the_ledger_of_the_data_in_memory(
    files: list[str], options: dict, objective: str, chunk: int
):
    write()
    stream, data = stream_of(files, chunk, objective=objective, **options)
    taken = []
    for content, state in stream._rows():
        if state.epoch:
            break
        taken.append(content)
    memory = OBJECTIVES[objective].encode(load(files, data), OWN[objective], data, Limits(None, {}), False)
    count_trained(memory, stream.collator, 0)
    assert total(*stream.ledgers()) == memory.ledger
    assert memory.ledger.balances()
    rows = [memory[0, row] for row in range(len(memory))]
    assert texts_of([stream.collator([row]) for row in taken]) == texts_of([stream.collator([row]) for row in rows])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_stream_resumes_from_any_state_with_the_same_batches(options: dict):
    write()
    files = ["a.jsonl", "c.txt", "b.jsonl"]
    whole, _ = stream_of(files, 16, **options)
    states, batches = [whole.state], []
    for batch in islice(whole, 160):
        batches.append(batch)
        states.append(whole.state)
    assert states[-1].epoch >= 1
    for at in (1, 17, 77, 125, 159):
        resumed, _ = stream_of(files, 16, **options)
        resumed.state = StreamState.from_json(states[at].to_json())
        for batch, wanted in zip(islice(resumed, 6), batches[at:], strict=False):
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_two_processes_divide_the_rows_of_one():
    write()
    one, _ = stream_of(["a.jsonl"], 16, packing=False)
    halves = [stream_of(["a.jsonl"], 16, (number, 2), packing=False)[0] for number in range(2)]
    sent: list[Any] = []

    def send(chunk: Any) -> Any:
        sent.append(chunk)
        return chunk

    halves[0].share, halves[1].share = send, lambda _: sent.pop(0)
    alone = texts_of(list(islice(one, 20)))
    together = texts_of([batch for half in halves for batch in islice(half, 10)])
    assert alone == together
    assert halves[0].state == halves[1].state


def bytewise(model: str) -> list[str]:
    """A tiny model with a tokenizer that does not depend on what it is trained on."""
    return [*scratch(model)[:-1], "byte"]


RUNS = {
    "clm": [*bytewise("gpt2"), "--no-packing", "-L", 128],
    "mlm": [*bytewise("bert"), "-L", 128],
    "seq2seq": [*bytewise("t5"), "--max-source-length", 128, "--max-target-length", 128],
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", RUNS)
def test_a_resumed_run_ends_with_the_weights_and_the_ledger_of_an_uninterrupted_one(objective: str, material: Path):
    data = material / ("pairs.jsonl" if objective == "seq2seq" else "text.jsonl")
    run = [
        objective,
        *RUNS[objective],
        "--data",
        data,
        "--streaming",
        "--shuffle-buffer",
        13,
        "-b",
        4,
        "--log-every",
        1,
        "--eval-data",
        data,
        "--save-every",
        9,
        "--eval-every",
        9,
        "--keep",
        9,
        "--samples",
        0,
        "--lr",
        1e-3,
    ]
    whole = trained(*run, "--max-steps", 23, "-o", "whole")
    trained(*run, "--max-steps", 23, "-o", "cut")
    for name in ("model.safetensors", "results.json"):
        Path("cut", name).unlink()
    for step in (18, 23):
        for file in Path("cut/checkpoints").glob(f"checkpoint-{step}/*"):
            file.unlink()
        Path(f"cut/checkpoints/checkpoint-{step}").rmdir()
    resumed = trained(*run, "--max-steps", 23, "-o", "cut", "--resume", "auto")
    one, other = (load_file(f"{name}/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [
            event["loss"]
            for event in map(json.loads, Path(name, "metrics.jsonl").read_text().splitlines())
            if "loss" in event
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 23
    for part in ("train", "eval"):
        assert whole["data"][part] == resumed["data"][part]
    assert whole["train"]["epochs"] == resumed["train"]["epochs"] >= (1 if objective != "mlm" else 0)
    memory = trained(
        *run[: run.index("--streaming")], *run[run.index("--streaming") + 1 :], "--max-steps", 1, "-o", "memory"
    )
    streamed, whole_ledger = whole["data"]["train"], memory["data"]["train"]
    if whole["train"]["epochs"]:
        assert {**streamed, "padding_fraction": 0} == {**whole_ledger, "padding_fraction": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --max-steps"),
        (["--max-steps", 2, "--val-split", 0.1], "a stream cannot be split"),
        (["--max-steps", 2, "--batch-tokens", 64], "cannot group rows by length"),
        (["--max-steps", 2, "--data", "more.jsonl", "--data-weights", "1,2"], "a stream is read in order"),
    ],
)
def test_options_that_a_stream_cannot_serve_are_refused(flags: list, message: str, material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--streaming", *flags)
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")


def test_a_bad_row_far_into_a_stream_is_reported_when_it_is_read(material: Path):
    Path("late.jsonl").write_text((material / "text.jsonl").read_text() + '{"text": 7}\n')
    outcome = lmtrain(
        "clm",
        *scratch("gpt2"),
        "--data",
        "late.jsonl",
        "--streaming",
        "--shuffle-buffer",
        10,
        "-b",
        2,
        "--max-steps",
        500,
        "-o",
        "run",
        "--no-packing",
        "--save-every",
        5,
    )
    assert outcome.code == 3
    assert "late.jsonl, line 61, column 'text': is int 7, not text" in outcome.err.replace("\n", "")


@pytest.mark.slow
def test_chunks_that_fill_no_row_or_hold_no_row_are_accepted(material: Path):
    for strategy in ("best-fit", "blocks"):
        results = trained(
            "clm",
            *bytewise("gpt2"),
            "--data",
            material / "prose.txt",
            "--streaming",
            "--shuffle-buffer",
            2,
            "-L",
            128,
            "-b",
            2,
            "--max-steps",
            2,
            "--packing-strategy",
            strategy,
            "-o",
            strategy,
        )
        assert results["train"]["steps"] == 2
        assert "shared_rows" not in results["data"]
    lines = (material / "pairs.jsonl").read_text() + '{"source": "a", "target": ""}\n' * 3
    Path("tail.jsonl").write_text(lines)
    results = trained(
        "seq2seq",
        *bytewise("t5"),
        "--data",
        "tail.jsonl",
        "--streaming",
        "--shuffle-buffer",
        30,
        "-b",
        30,
        "--max-steps",
        5,
        "-o",
        "pairs",
    )
    assert results["data"]["train"]["rows_empty"] == 3


@pytest.mark.slow
def test_resume_refuses_another_shuffle_buffer_and_a_checkpoint_of_data_in_memory(material: Path):
    run = ["clm", *bytewise("gpt2"), "--data", material / "text.jsonl", "-b", 2, "--val-split", 0, "--no-packing"]
    stream = [*run, "--streaming", "--shuffle-buffer", 13]
    trained(*stream, "--max-steps", 2, "-o", "run")
    outcome = lmtrain(*run, "--streaming", "--shuffle-buffer", 14, "--max-steps", 4, "-o", "run", "--resume", "auto")
    assert outcome.code == 2
    assert "data.shuffle_buffer was 13 and is 14" in outcome.err
    again = [*run, "--streaming", "--shuffle-buffer", 14, "--max-steps", 4, "-o", "run", "--resume", "auto"]
    outcome = lmtrain(*again, "--allow-drift", "shuffle-buffer")
    assert outcome.code == 2
    assert "read 13 rows at a time" in outcome.err.replace("\n", " ")
    trained(*run, "--max-steps", 2, "-o", "plain")
    outcome = lmtrain(*stream, "--max-steps", 4, "-o", "plain", "--resume", "auto")
    assert "data.streaming was False and is True" in outcome.err
