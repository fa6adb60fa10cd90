"""The command line from outside: help, precedence, streams, exit codes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HEAVY, imported_by, lmtrain, scratch, trained


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["clm", "--help"],
        ["recipes"],
        ["clm", "--model", "gpt2", "--data", "x", "--dry-run"],
        ["clm", "--model", "gpt2", "--data", "no-such-file.txt"],
        ["clm", "--from-scratch", "--model", "t5", "--data", "x"],
        ["probe", "--help"],
        ["probe", "--model", "bert-base-cased", "--data", "no-such-file.csv"],
    ],
)
def test_commands_without_a_model_import_no_heavy_library(arguments: list[str]):
    assert not imported_by(*arguments) & set(HEAVY)


@pytest.mark.slow
def test_tokenizer_commands_do_not_import_models():
    """Importing it takes as long as torch itself and a fifth of the memory of preparing a corpus."""
    Path("x.txt").write_text("one two three\n" * 50)
    train = imported_by("tokenizer", "train", "--data", "x.txt", "--kind", "bpe:300", "-o", "made")
    stats = imported_by("tokenizer", "stats", "made", "--data", "x.txt")
    prepare = imported_by("--version", also="import lmtrain.training.datasets, lmtrain.modeling.configuration")
    for modules in (train, stats, prepare):
        assert "tokenizers" in modules
        assert not modules & {"transformers.modeling_utils", "torch._dynamo", "transformers.trainer"}


@pytest.mark.parametrize("objective", ["clm", "mlm", "seq2seq"])
def test_help_shows_at_most_45_flags_untruncated(objective: str):
    text = lmtrain(objective, "--help").out
    assert 20 < len(re.findall(r"^│ --", text, re.MULTILINE)) <= 45
    assert not re.search(r"--[\w-]*…", text), "a flag is cut off"
    assert max(map(len, text.splitlines())) <= 80


def test_flags_override_set_overrides_environment_overrides_recipe(monkeypatch: pytest.MonkeyPatch):
    Path("r.yaml").write_text(
        "objective: clm\nmodel: {name: gpt2}\ndata: {train: x.txt}\n"
        "train: {epochs: 1, batch_size: 1, seed: 1, learning_rate: 1e-3}\n"
    )
    monkeypatch.setenv("LMTRAIN_BATCH_SIZE", "2")
    monkeypatch.setenv("LMTRAIN_SEED", "2")
    monkeypatch.setenv("LMTRAIN_LEARNING_RATE", "2e-3")
    text = lmtrain(
        "run", "r.yaml", "--lr", "4e-3", "--set", "train.seed=3", "--set", "train.learning_rate=3e-3", "--dry-run"
    ).out
    for line in ("epochs: 1.0", "batch_size: 2", "seed: 3", "learning_rate: 0.004"):
        assert f"  {line}\n" in text


def test_recipe_of_a_dry_run_prints_the_same_recipe():
    flags = ["--model", "bert", "--data", "a b.txt", "--set", "train.adam_beta2=0.98", "--mask-split", "70/20/10"]
    first = lmtrain("mlm", *flags, "--dry-run").out
    Path("again.yaml").write_text(first)
    assert lmtrain("run", "again.yaml", "--dry-run").out == first
    assert "adam_beta2: 0.98" in first


def test_repeated_model_config_flags_are_merged():
    flags = ["--model-config", "n_layer=6,n_head=4", "--model_config=n_embd=256"]
    text = lmtrain("clm", "--model", "gpt2", "--from-scratch", "--data", "x", *flags, "--dry-run").out
    assert "config:\n    n_layer: 6\n    n_head: 4\n    n_embd: 256\n" in text
    again = lmtrain(
        "clm", "--model", "gpt2", "--from-scratch", "--data", "x", *flags, "--model-config", "n_layer=2", "--dry-run"
    )
    assert "config:\n    n_layer: 2\n    n_head: 4\n" in again.out, "the later one wins, as of any flag"


@pytest.mark.parametrize(
    "flags",
    [["--per_device_train_batch_size", "3"], ["--per-device-train-batch-size", "3"], ["-b", "3"], ["--batch_size=3"]],
)
def test_aliases_and_underscores_are_accepted(flags: list[str]):
    assert "batch_size: 3" in lmtrain("clm", "--model", "gpt2", "--data", "x", *flags, "--dry-run").out


def test_no_flags_and_shortcuts_set_their_option():
    text = lmtrain(
        "clm", "--model", "m", "--data", "x", "--no-packing", "--bf16", "--max-time", "1.5h", "--dry-run"
    ).out
    assert "packing: false" in text
    assert "precision: bf16" in text
    assert "max_time: 5400.0" in text


# What a newcomer gets wrong: (arguments, exit code, what the message must hold).
MISTAKES = {
    "missing file": (
        ["clm", "--model", "GPT2", "--data", "txet.jsonl"],
        3,
        ["txet.jsonl", "no such file", "text.jsonl"],
    ),
    "wrong column": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "--text-column", "txt"],
        3,
        ["no column 'txt'", "it has text"],
    ),
    "empty file": (["clm", "--model", "GPT2", "--data", "empty.txt"], 3, ["empty.txt", "no usable text"]),
    "misspelt flag": (["clm", "--model", "GPT2", "--data", "text.jsonl", "--epoch", "3"], 2, ["--epoch", "--epochs"]),
    "misspelt key": (["run", "typo.yaml"], 2, ["typo.yaml", "learing_rate", "did you mean 'learning_rate'"]),
    "wrong objective": (
        ["clm", "--from-scratch", "--model", "t5", "--data", "text.jsonl"],
        3,
        ["t5 is an encoder-decoder: use lmtrain seq2seq"],
    ),
    "folder exists": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "-o", "GPT2"],
        2,
        ["not empty", "--overwrite", "--resume"],
    ),
    "unknown architecture": (
        ["clm", "--from-scratch", "--model", "gtp2", "--data", "text.jsonl"],
        3,
        ["no such architecture", "gpt2"],
    ),
    "too long": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "-L", "4096"],
        2,
        ["--max-length 4096", "128 positions"],
    ),
    "no mask token": (
        ["mlm", *scratch("bert")[:-1], "GPT2", "--data", "text.jsonl"],
        3,
        ["no mask token", "wordpiece"],
    ),
    "a foreign tokenizer": (
        ["mlm", "--model", "BERT", "--tokenizer", "GPT2", "--data", "text.jsonl"],
        3,
        ["not the tokenizer of BERT", "leave it out, or train from scratch"],
    ),
    "half a pair": (
        ["clm", "--model", "GPT2", "--data", "prompts.jsonl", "--prompt-column", "question"],
        2,
        ["--completion-column", "belong together"],
    ),
    "a value out of range": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "--lr", "-1", "-b", "0"],
        2,
        ["--learning-rate", "--batch-size", "got -1"],
    ),
    "unknown TrainingArguments": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "--set", "train.adam_beta3=1"],
        2,
        ["train.adam_beta3", "did you mean 'adam_beta"],
    ),
    "what lmtrain sets itself": (
        ["clm", "--model", "GPT2", "--data", "text.jsonl", "--set", "train.eval_strategy=no"],
        2,
        ["--eval-every"],
    ),
    "no recipe of this name": (["run", "clm-quikstart"], 2, ["did you mean 'clm-quickstart'"]),
    "an option of another objective": (["run", "foreign.yaml"], 2, ["mask_probability", "an option of mlm only"]),
}
NEED_TORCH = {"too long", "no mask token", "a foreign tokenizer"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_reported_in_one_message_with_the_remedy(mistake: str, material: Path, gpt2: Path, bert: Path):
    for file in material.iterdir():
        Path(file.name).symlink_to(file)
    Path("GPT2").symlink_to(gpt2)
    Path("BERT").symlink_to(bert)
    Path("empty.txt").touch()
    Path("typo.yaml").write_text("task: clm\nmodel: gpt2\ndata: text.jsonl\ntrain:\n  learing_rate: 0.001\n")
    Path("foreign.yaml").write_text("objective: clm\nmodel: gpt2\ndata: text.jsonl\nmask_probability: 0.3\n")
    before = sorted(Path().iterdir())
    arguments, code, wanted = MISTAKES[mistake]
    outcome = lmtrain(*arguments)
    message = re.sub(r"\s*│?\n│?\s*", " ", outcome.err)
    assert outcome.code == code, outcome.err
    assert all(part in message for part in wanted), outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert sorted(Path().iterdir()) == before, "something was left behind"


def test_early_mistakes_do_not_import_torch(material: Path):
    for name in set(MISTAKES) - NEED_TORCH - {"folder exists"}:
        arguments = [argument.replace("GPT2", "gpt2") for argument in MISTAKES[name][0]]
        assert not imported_by(*arguments) & {"torch", "transformers"}, name


def test_json_is_the_only_output_on_stdout_and_quiet_prints_no_notes(material: Path):
    arguments = ["clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 2]
    outcome = lmtrain(*arguments, "--json", "-o", "a")
    assert json.loads(outcome.out) == json.loads(Path("a/results.json").read_text())
    assert "step 2/2" in outcome.err
    assert lmtrain(*arguments, "--quiet", "-o", "b").err == ""


@pytest.mark.slow
def test_several_processes_train_like_one_and_print_one_document(material: Path):
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "clm",
        *scratch("gpt2"),
        "--data",
        str(material / "text.jsonl"),
        "--max-steps",
        "3",
        "--json",
        "--quiet",
        "--lr",
        "1e-3",
        "-b",
        "4",
    ]
    done = subprocess.run([*command, "-o", "two", "--num-processes", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    one = trained(
        *command[3:-2],
        "-b",
        8,
        "-o",
        "one",
        "--set",
        "model.config={'n_embd': 32, 'n_layer': 2, 'n_head': 2, 'n_positions': 128}",
    )
    assert two["environment"]["processes"] == 2
    assert two["initial_metrics"]["eval_loss"] == pytest.approx(one["initial_metrics"]["eval_loss"], rel=1e-6)
    assert two["train"]["tokens_trained"] == one["train"]["tokens_trained"]


@pytest.mark.slow
def test_mistake_with_several_processes_is_printed_once(material: Path, gpt2: Path):
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "clm",
        "--model",
        str(gpt2),
        "--data",
        str(material / "text.jsonl"),
        "-L",
        "4096",
        "--num-processes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("128 positions") == 1
    assert "Traceback" not in done.stderr


def wait_until_it_trains() -> None:
    """Until the run in the folder `run` has logged some steps."""
    log = Path("run/metrics.jsonl")
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") > 3:
            break
        time.sleep(0.1)


@pytest.mark.slow
def test_run_under_accelerate_saves_a_checkpoint_on_a_signal(material: Path):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "-m",
        "lmtrain",
        "clm",
        *scratch("gpt2"),
        "--data",
        str(material / "prose.txt"),
        "--epochs",
        "10000",
        "-o",
        "run",
        "--eval-every",
        "1000",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until_it_trains()
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True)
    subprocess.run(["kill", "-TERM", *children.stdout.split()], check=True)
    _, err = running.communicate(timeout=60)
    assert "lmtrain run run/recipe.yaml --resume auto -o run" in err
    assert list(Path("run/checkpoints").glob("checkpoint-*"))
    assert json.loads(Path("run/results.json").read_text())["status"] == "interrupted"


def test_environment_values_are_plain_text_and_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LMTRAIN_SOURCE_PREFIX", "summarize: ")
    monkeypatch.setenv("LMTRAIN_OUTPUT_DIR", "2024")
    monkeypatch.setenv("LMTRAIN_DATA", "-")
    text = lmtrain("seq2seq", "--model", "t5-small", "--dry-run").out
    assert "source_prefix: 'summarize: '" in text
    assert "output_dir: '2024'" in text
    assert lmtrain("clm", "--model", "m", "--data", "x", "--dry-run").code == 0
    monkeypatch.setenv("LMTRAIN_EVERY", "1")
    assert lmtrain("clm", "--model", "m", "--data", "x", "--dry-run").code == 2


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--best-metric", "perplexityy"], "did you mean 'perplexity'"),
        (["--resume", "auto", "--overwrite", "-o", "x"], "give one of the two"),
        (["--resume", "auto", "-o", "x", "--max-steps", "0"], "nothing to --resume"),
        (["--bf16", "--precision", "fp32"], "given twice"),
        (["--text-column", "a", "--messages-column", "b"], "different kinds of rows"),
        (["--accelerate-config", "nope.yaml"], "no such file"),
        (["--set", "train.bf16=true"], "--precision"),
        (["--early-stop", "1", "--val-split", "0", "-o", "x"], "needs evaluation data"),
    ],
)
def test_contradictory_flags_are_refused(flags: list[str], wanted: str, material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", *flags)
    assert outcome.code == 2, outcome.err
    assert wanted in outcome.err.replace("\n", " ")


def test_training_arguments_set_by_lmtrain_cannot_be_set():
    from lmtrain.config.recipe import Clm
    from lmtrain.config.training_arguments import OURS
    from lmtrain.training.arguments import RENAMED, training_arguments

    recipe = Clm.model_validate({"model": {"name": "m"}, "data": {"train": ["x"]}})
    passed = set(RENAMED.values()) | {name for name in type(recipe.train).model_fields}
    ours = vars(training_arguments(recipe, "gpt2", False)).keys() - passed
    from transformers import TrainingArguments

    plain = vars(TrainingArguments(output_dir="x"))
    changed = {name for name in ours if vars(training_arguments(recipe, "gpt2", False))[name] != plain.get(name)}
    known = set(OURS) | {
        "gradient_checkpointing",
        "dataloader_pin_memory",
        "torch_compile_backend",
        "torch_compile_mode",
        "save_steps",
    }
    assert {name for name in changed if not name.startswith("_")} - known - {
        "distributed_state",
        "deepspeed_plugin",
    } == set()


@pytest.mark.slow
def test_interrupted_launch_prints_how_to_resume(material: Path):
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "clm",
        *scratch("gpt2"),
        "--data",
        str(material / "prose.txt"),
        "--epochs",
        "10000",
        "-o",
        "run",
        "--eval-every",
        "100000",
        "--num-processes",
        "2",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until_it_trains()
    running.terminate()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143, err
    assert "lmtrain run run/recipe.yaml --resume auto -o run" in err
    assert "Traceback" not in err
    assert list(Path("run/checkpoints").glob("checkpoint-*"))
