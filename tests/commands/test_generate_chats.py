"""A chat that ends with an answer asks for that answer: it is the reference, and the model is not shown it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lmtrain, sentences
from tiny_models import SMALLEST
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lmtrain.config.data import ClmData
from lmtrain.data.chats import Chat
from lmtrain.data.rows import Rows
from lmtrain.objectives.generation import GenerationSettings
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import chat
from lmtrain.preprocessing.dataset import Limits
from lmtrain.preprocessing.train_tokenizer import train_tokenizer

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "Why?"},
]
ANSWER = {"role": "assistant", "content": "the cat"}
CALL = {"name": "find", "arguments": {"what": "cat"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer("byte", sentences(9), OBJECTIVES["clm"].special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **{**SMALLEST["gpt2"], "n_positions": 256}, vocab_size=len(tokenizer))
    network = AutoModelForCausalLM.from_config(config)
    network.generation_config.eos_token_id = chat.end_ids(tokenizer)  # as training sets it
    network.save_pretrained(folder)
    return folder


def answers(model: Path, *rows: dict[str, Any], notes: str = "") -> list[dict[str, Any]]:
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = lmtrain("generate", "-m", model, "-d", "chats.jsonl", "--json", "--max-new-tokens", 6)
    assert outcome.code == 0, outcome.err
    assert notes in outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "a dog"}, {"from": "human", "value": "Why?"}]
ENDING = {
    "messages": {"messages": [*ASKED, ANSWER]},
    "sharegpt": {"id": 1, "source": "web", "conversations": [*SHAREGPT, {"from": "gpt", "value": "the cat"}]},
    "another column": {"id": 1, "talk": [*ASKED, ANSWER]},
    "json": {"messages": json.dumps([*ASKED, ANSWER])},
    "prompt and completion": {"prompt": ASKED, "completion": [ANSWER]},
}


@pytest.mark.parametrize("row", ENDING.values(), ids=ENDING.keys())
def test_generate_asks_for_the_answer_that_a_chat_ends_with(row: dict[str, Any], model: Path):
    told = "1 of 2 chats end with an answer, which the model is not shown (--json: reference)"
    column = next(name for name in row if name not in ("id", "source", "completion"))
    (asked, bare) = answers(model, row, {column: ASKED}, notes=told)
    assert asked == {**bare, "reference": "the cat"}
    assert bare["input"] == ASKED and "reference" not in bare


def test_a_call_of_a_tool_is_a_reference_as_the_model_would_write_it(model: Path):
    last = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
    tools = [{"type": "function", "function": {"name": "find"}}]
    (called,) = answers(model, {"messages": [*ASKED, last], "tools": tools})
    assert called["reference"] == json.dumps(CALL)
    (bare,) = answers(model, {"messages": ASKED})
    assert called["input"] == bare["input"] == ASKED


def test_samples_continue_the_last_prompt_of_a_chat(model: Path):
    tokenizer, clm = AutoTokenizer.from_pretrained(model), OBJECTIVES["clm"]
    data = ClmData(train=["x"])
    chats = [Chat([*ASKED, ANSWER]), Chat([*ASKED, ANSWER, ASKED[0]])]
    examples = clm.encode(Rows.of("messages", chats), tokenizer, data, Limits(None), True)
    network = AutoModelForCausalLM.from_pretrained(model)
    samples = clm.sample(
        network, tokenizer, examples, range(2), clm.collator(tokenizer, data, 1), GenerationSettings()
    )
    shown = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    shown = shown.replace("<|im_end|>", "")  # an end of outputs
    assert [(sample["input"], sample["reference"]) for sample in samples] == [(shown, "the cat")] * 2
