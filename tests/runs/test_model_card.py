"""The model card: metadata that the Hub takes, figures that are right, no path of this machine."""

import json
import re
from pathlib import Path

import pytest
from conftest import scratch, trained
from huggingface_hub import ModelCard, metadata_load

TASKS = {"clm": "text-generation", "mlm": "fill-mask"}


def run(objective: str, model: str, data: Path, *flags: object) -> dict:
    return trained(
        objective, *scratch(model), "--data", data, "--val-split", 0.2, "--max-steps", 3, "-o", "run", *flags
    )


@pytest.mark.parametrize("objective, model, file", [
    ("clm", "gpt2", "text.jsonl"), ("mlm", "bert", "text.jsonl"), ("seq2seq", "t5", "pairs.jsonl"),
])  # fmt: skip
def test_the_metadata_are_valid_and_equal_the_results(objective: str, model: str, file: str, material: Path):
    results = run(objective, model, material / file, "--license", "apache-2.0", "--language", "ko")
    metadata = metadata_load("run/README.md")
    assert metadata["library_name"] == "transformers" and metadata["license"] == "apache-2.0"
    assert metadata["language"] in ("ko", ["ko"]) and "lmtrain" in metadata["tags"]
    assert metadata.get("pipeline_tag") == TASKS.get(objective) and "base_model" not in metadata
    card = ModelCard.load("run/README.md")
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == results["metrics"]
    assert card.data.eval_results[0].dataset_name == file


def test_the_figures_of_the_training_are_those_of_the_results(material: Path):
    results = run("clm", "gpt2", material / "text.jsonl", "--lr", 1e-3)
    text = Path("run/README.md").read_text()
    train = results["train"]
    assert f"{train['steps']} steps" in text and f"{train['tokens_trained']:,} of them predicted" in text
    assert f"{train['tokens_seen']:,} tokens read" in text and "| learning rate | 0.001 |" in text
    assert f"| {results['data']['train']['rows_used']} | {results['data']['train']['tokens_used']:,} |" in text


def test_no_shared_text_names_a_path_of_this_machine(material: Path):
    run("clm", "gpt2", material.resolve() / "text.jsonl")
    text = Path("run/README.md").read_text()
    assert str(material) not in text and str(Path.cwd()) not in text and "text.jsonl" in text
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work)/", text)


def test_the_card_of_an_adapter_names_its_base(material: Path, gpt2: Path):
    trained("clm", "--model", gpt2, "--lora", "--data", material / "text.jsonl", "--max-steps", 2, "-o", "run")
    text, metadata = Path("run/README.md").read_text(), metadata_load("run/README.md")
    assert metadata["library_name"] == "peft" and "PeftModel.from_pretrained" in text
    assert str(gpt2) not in text and f"the local model `{gpt2.name}`" in text


def test_the_code_of_the_card_loads_the_model(material: Path, monkeypatch: pytest.MonkeyPatch):
    run("clm", "gpt2", material / "text.jsonl")
    code = Path("run/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir("run")
    found: dict = {}
    exec(code, found)
    assert found["model"].config.n_layer == 2 and found["tokenizer"]("the cat")["input_ids"]


def test_results_name_command_settings_and_dates(material: Path):
    results = run("clm", "gpt2", material / "text.jsonl", "--lr", 1e-3)
    assert results["command"].startswith("lmtrain clm --model gpt2") and "--lr 0.001" in results["command"]
    assert results["settings"]["data.train"] == [str(material / "text.jsonl")]
    assert results["settings"]["train.learning_rate"] == 1e-3
    assert results["started"] <= results["finished"] and results["finished"].endswith("+00:00")
    assert json.loads(Path("run/results.json").read_text()) == results
