"""Few frames of lmtrain stand between the command line, Trainer and the network: a debugger shows the whole way."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import lmtrain, scratch

import lmtrain as package

PACKAGE = Path(package.__file__).parent


def own_frames() -> list[str]:
    """The functions of lmtrain on the stack, from the innermost to the outermost."""
    return [frame.function for frame in inspect.stack(0) if Path(frame.filename).is_relative_to(PACKAGE)]


def recorded(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[list[str]]:
    """A list that gets the frames of every call of a method."""
    method: Callable[..., Any] = getattr(owner, name)
    stacks = []

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        stacks.append(own_frames())
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    return stacks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "model", "network", "data", "batches"),
    [
        ("clm", "gpt2", "GPT2LMHeadModel", "text.jsonl", "packed"),
        ("clm", "gpt2", "GPT2LMHeadModel", "text.jsonl", "padding-free"),
        ("mlm", "bert", "BertForMaskedLM", "text.jsonl", "padding-free"),
        ("seq2seq", "t5", "T5ForConditionalGeneration", "pairs.jsonl", "padding-free"),
    ],
)
def test_at_most_four_own_frames_from_training_step_to_forward(
    objective: str,
    model: str,
    network: str,
    data: str,
    batches: str,
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lmtrain.modeling.document_mask import DocumentMask
    from lmtrain.modeling.padding_free import PairMask

    prepared = [recorded(monkeypatch, mask, "prepare") for mask in (DocumentMask, PairMask)]
    stacks = recorded(monkeypatch, getattr(transformers, network), "forward")
    packing = [] if objective == "seq2seq" else ["--packing" if batches == "packed" else "--no-packing"]
    outcome = lmtrain(objective, *scratch(model), "--data", material / data, "-o", "run", "--max-steps", 1, *packing)
    assert outcome.code == 0, outcome.err
    assert any("training_step" in stack for calls in prepared for stack in calls), "no texts share rows"
    steps = [stack[: stack.index("training_step") + 1] for stack in stacks if "training_step" in stack]
    assert steps
    assert max(map(len, steps)) <= 4, steps


def test_at_most_four_own_frames_from_the_command_line_to_trainer(
    material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks = recorded(monkeypatch, transformers.Trainer, "train")
    data = material / "text.jsonl"
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", data, "-o", "run", "--max-steps", 1)
    assert outcome.code == 0, outcome.err
    assert len(stacks) == 1
    assert len(stacks[0]) <= 4, stacks
