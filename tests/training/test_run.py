"""A run from outside: what it writes, what it keeps, when it stops."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, lmtrain, scratch, sentences, trained
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)

LOADERS = {"gpt2": AutoModelForCausalLM, "bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}


@pytest.mark.parametrize("model", LOADERS)
def test_a_run_folder_holds_what_it_promises_and_loads_anywhere(model: str, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(model)
    for name in (
        "recipe.yaml",
        "results.json",
        "metrics.jsonl",
        "samples.jsonl",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "checkpoints/checkpoint-4",
    ):
        assert (folder / name).exists(), name
    assert not list(folder.glob("*.bin"))
    results = json.loads((folder / "results.json").read_text())
    for ledger in (results["data"]["train"], results["data"]["eval"]):
        assert ledger["rows_read"] == sum(ledger[f"rows_{fate}"] for fate in ("used", "empty", "bad", "dropped"))
        assert ledger["tokens_read"] == sum(ledger[f"tokens_{fate}"] for fate in ("used", "truncated", "dropped"))
    network = LOADERS[model].from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert network.get_input_embeddings().num_embeddings == len(tokenizer)
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [event["step"] for event in events if "eval_loss" in event]
    assert (evaluated[0], evaluated[-1]) == (0, 4)
    assert evaluated == sorted(set(evaluated))
    assert events[-1]["eval_loss"] == results["metrics"]["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["clm", *scratch("gpt2"), "--max-length", "32"], "text.jsonl"),
        (["clm", *scratch("gpt2")], "prose.txt"),
        (["clm", *scratch("gpt2"), "--prompt-column", "question", "--completion-column", "answer"], "prompts.jsonl"),
        (["clm", *scratch("gpt2")], "chats.jsonl"),
        (["mlm", *scratch("bert"), "--max-length", "16"], "text.jsonl"),
        (["seq2seq", *scratch("t5")], "pairs.jsonl"),
    ],
)
def test_every_objective_and_kind_of_rows_learns(arguments: list[str], data: str, material: Path):
    results = trained(
        *arguments, "--data", material / data, "--epochs", 12, "--lr", 1e-2, "--eval-every", 1000, "-o", "run"
    )
    assert results["metrics"]["eval_loss"] < 0.75 * results["initial_metrics"]["eval_loss"]
    assert results["train"]["last_loss"] < results["train"]["first_loss"]


def test_a_recipe_of_a_run_does_it_again_to_the_last_digit(gpt2: Path):
    again = trained("run", gpt2 / "recipe.yaml", "-o", "again")
    before = json.loads((gpt2 / "results.json").read_text())
    assert again["metrics"] == before["metrics"]
    assert again["data"] == before["data"]


def end_of(folder: Path, prompt: str) -> list[int]:
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return network.generate(ids, max_new_tokens=40, do_sample=False)[0].tolist()


@pytest.mark.slow
def test_a_model_whose_padding_is_its_end_token_learns_to_stop(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the same run with the labels of the stock collator does not."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained("tokenizer")
    Path("short.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences(48)))
    run = [
        "clm",
        *scratch("gpt2")[:5],
        "--tokenizer",
        "tokenizer",
        "--data",
        "short.jsonl",
        "--no-packing",
        "--val-split",
        0,
        "--epochs",
        40,
        "--lr",
        1e-2,
        "--samples",
        0,
        "-b",
        16,
        "--save-every",
        1000,
    ]
    trained(*run, "-o", "exact")
    written = end_of(Path("exact"), "the cat sees")
    assert written[-1] == tokenizer.eos_token_id
    assert len(written) < 30

    stock = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def with_stock_labels(collate):
        def both(rows):
            batch = collate(rows)
            ids = stock([{"input_ids": row["input_ids"].tolist()} for row in rows])
            return {**batch, "labels": ids["labels"].where(batch["labels"] != -100, torch.tensor(-100))}

        both.fixed = collate.fixed
        return both

    from lmtrain.training import assembly

    real = assembly.fit_scoring

    def fit_scoring(*arguments):
        collate, loss = real(*arguments)
        return with_stock_labels(collate), loss

    monkeypatch.setattr(assembly, "fit_scoring", fit_scoring)
    trained(*run, "-o", "stock")
    assert tokenizer.eos_token_id not in end_of(Path("stock"), "the cat sees")


@pytest.mark.slow
def test_the_best_model_is_kept_and_training_stops_early(gpt2: Path, material: Path):
    """A learning rate that ruins the model: the best evaluation is not the last."""
    results = trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "text.jsonl",
        "-L",
        32,
        "--lr",
        0.3,
        "--lr-scheduler",
        "constant",
        "--max-steps",
        60,
        "--eval-every",
        2,
        "--early-stop",
        3,
        "-o",
        "run",
    )
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {event["step"]: event["eval_loss"] for event in events if "eval_loss" in event and event["step"]}
    best = min(losses, key=losses.get)
    assert results["metrics"]["eval_loss"] == losses[best] < losses[max(losses)]
    assert results["train"]["steps"] == best + 6 < 60
    kept = trained(
        "clm", "--model", "run", "--data", material / "text.jsonl", "-L", 32, "--max-steps", 0, "-o", "kept"
    )
    assert kept["metrics"]["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "bert", "t5"])
def test_a_resumed_run_ends_in_the_same_weights(model: str, material: Path):
    objective, data = {"gpt2": ("clm", "text"), "bert": ("mlm", "text"), "t5": ("seq2seq", "pairs")}[model]
    run = [
        objective,
        *scratch(model),
        "--data",
        material / f"{data}.jsonl",
        "--epochs",
        4,
        "-b",
        4,
        "--grad-accum",
        2,
        "--save-every",
        3,
        "--eval-every",
        4,
        "--keep",
        50,
        "--lr",
        1e-3,
        "--val-split",
        0.2,
    ]
    if model != "t5":
        run += ["--max-length", 16]
    trained(*run, "-o", "whole")
    steps = sorted(int(path.name[11:]) for path in Path("whole/checkpoints").iterdir())
    resumed = trained(*run, "--resume", f"whole/checkpoints/checkpoint-{steps[1]}", "-o", "resumed")
    whole, other = (LOADERS[model].from_pretrained(folder).state_dict() for folder in ("whole", "resumed"))
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    assert resumed["metrics"] == json.loads(Path("whole/results.json").read_text())["metrics"]


def six_steps_saved_by_two(material: Path) -> list:
    """Train six steps in the folder `run` with three checkpoints; the command, to go on with."""
    flags = ["-L", 16, "--save-every", 2, "--keep", 9, "-o", "run"]
    run = ["clm", *scratch("gpt2"), "--data", material / "text.jsonl", *flags]
    trained(*run, "--max-steps", 6)
    return run


def test_resume_auto_goes_on_from_the_newest_whole_checkpoint(material: Path):
    run = six_steps_saved_by_two(material)
    (Path("run/checkpoints/checkpoint-6") / "resume.safetensors").unlink()
    outcome = lmtrain(*run, "--max-steps", 8, "--resume", "auto")
    assert outcome.code == 0
    assert "resuming from run/checkpoints/checkpoint-4" in outcome.err
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    (Path("run/checkpoints/checkpoint-6") / "resume.json").unlink()
    assert lmtrain(*run, "--resume", "run/checkpoints/checkpoint-6").code == 3
    assert lmtrain(*run, "--resume", "run/checkpoints/checkpoint-5").code == 2
    before = Path("run/results.json").read_text()
    outcome = lmtrain(*run, "--max-steps", 7, "--resume", "run/checkpoints/checkpoint-8")
    assert outcome.code == 2
    assert "ask for more steps" in outcome.err.replace("\n", " ")
    assert Path("run/results.json").read_text() == before


def test_overwrite_replaces_a_run_and_nothing_else(material: Path):
    run = ["clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--max-steps", 2, "--val-split", 0]
    trained(*run, "-o", "run")
    Path("run/mine.txt").write_text("keep")
    trained(*run, "-o", "run", "--overwrite", "--seed", 1)
    assert Path("run/mine.txt").read_text() == "keep"
    assert "seed: 1\n" in Path("run/recipe.yaml").read_text()
    Path("other").mkdir()
    Path("other/mine.txt").write_text("keep")
    outcome = lmtrain(*run, "-o", "other", "--overwrite")
    assert outcome.code == 2
    assert [path.name for path in Path("other").iterdir()] == ["mine.txt"]


def test_bad_data_loses_nothing_of_the_run_that_was_there(material: Path):
    run = ["clm", *scratch("gpt2"), "--max-steps", 2, "-o", "run", "--overwrite"]
    trained(*run, "--data", material / "text.jsonl")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    Path("bad.jsonl").write_text('{"text": "ok"}\n{"text": \n')
    assert lmtrain(*run, "--data", "bad.jsonl").code == 3
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_a_loss_that_is_not_finite_stops_the_run(material: Path):
    outcome = lmtrain(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "text.jsonl",
        "-L",
        16,
        "--lr",
        1e20,
        "--max-grad-norm",
        0,
        "--log-every",
        1,
        "--max-steps",
        30,
        "-o",
        "run",
    )
    assert outcome.code == 6
    assert "is not a finite number; the update is not applied" in outcome.err.replace("\n", " ")


def test_a_folder_that_cannot_be_written_is_said_before_training(material: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write anywhere
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "-o", "closed/run")
    assert outcome.code == 7
    assert "no permission" in outcome.err


def test_max_time_ends_a_run_with_everything_in_place(material: Path):
    results = trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "prose.txt",
        "--epochs",
        10000,
        "--max-time",
        "2s",
        "--save-every",
        100000,
        "--eval-every",
        100000,
        "-o",
        "run",
    )
    assert results["status"] == "completed"
    assert results["train"]["steps"] < 10000
    assert "eval_loss" in results["metrics"]


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_token_is_trained_once_an_epoch(epochs: int, material: Path):
    results = trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "prose.txt",
        "-L",
        50,
        "--epochs",
        epochs,
        "--val-split",
        0,
        "-b",
        3,
        "--grad-accum",
        2,
        "-o",
        "run",
    )
    ledger = results["data"]["train"]
    blocks = -(-ledger["tokens_used"] // 50)
    assert results["train"]["tokens_seen"] == epochs * ledger["tokens_used"]
    assert (
        results["train"]["tokens_trained"]
        == epochs * ledger["tokens_trained"]
        == epochs * (ledger["tokens_used"] - blocks)
    )
    assert "eval" not in results["data"]


def test_a_compiled_model_loads_like_any_other(material: Path):
    trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "text.jsonl",
        "--max-steps",
        2,
        "--compile",
        "--set",
        "train.torch_compile_backend=eager",
        "-o",
        "compiled",
    )
    again = lmtrain("clm", "--model", "compiled", "--data", material / "text.jsonl", "--max-steps", 0, "-o", "again")
    assert again.code == 0, again.err


def test_no_checkpoint_is_saved_once_the_loss_is_not_finite(material: Path):
    outcome = lmtrain(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "text.jsonl",
        "-L",
        16,
        "--lr",
        1e18,
        "--optim",
        "sgd",
        "--max-grad-norm",
        0,
        "--save-every",
        2,
        "--val-split",
        0,
        "--log-every",
        100,
        "-o",
        "run",
    )
    assert outcome.code == 6
    from safetensors.torch import load_file

    for path in Path("run/checkpoints").glob("*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path
    assert json.loads(Path("run/results.json").read_text())["status"] == "failed"


def test_resuming_a_finished_run_changes_nothing(material: Path):
    run = ["clm", *scratch("gpt2"), "--data", material / "text.jsonl", "-L", 32, "--max-steps", 4, "-o", "run"]
    results = trained(*run)
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    assert trained(*run, "--resume", "auto") == results
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_a_resumed_run_counts_stops_and_reports_like_the_whole_one(material: Path):
    run = [
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "text.jsonl",
        "-L",
        16,
        "--lr",
        0.3,
        "--lr-scheduler",
        "constant",
        "--max-steps",
        60,
        "--save-every",
        1,
        "--eval-every",
        2,
        "--early-stop",
        3,
        "--keep",
        99,
    ]
    whole = trained(*run, "-o", "whole")
    step = whole["train"]["steps"] - 2
    resumed = trained(*run, "-o", "whole", "--resume", f"whole/checkpoints/checkpoint-{step}")
    for key in ("steps", "tokens_seen", "tokens_trained"):
        assert resumed["train"][key] == whole["train"][key], key
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["initial_metrics"] == whole["initial_metrics"]
    steps = [
        json.loads(line)["step"]
        for line in Path("whole/metrics.jsonl").read_text().splitlines()
        if "eval_loss" in line
    ]
    assert steps == sorted(set(steps))


def test_seconds_and_tokens_of_a_resumed_run_are_of_all_of_it(material: Path):
    run = ("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--val-split", 0, "--max-steps", 8, "-o", "run")
    paused = trained(*run, "--stop-at", 4)["train"]
    resumed = trained(*run, "--resume", "auto")["train"]
    assert resumed["seconds"] > paused["seconds"]
    assert resumed["tokens_seen"] > paused["tokens_seen"]
    assert resumed["tokens_seen"] / resumed["tokens_per_second"] > paused["tokens_seen"] / paused["tokens_per_second"]
    assert resumed["tokens_per_second"] > resumed["tokens_seen"] / resumed["seconds"]


def test_a_folder_that_is_no_run_is_not_resumed_into(material: Path):
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--resume", "auto", "-o", "mine")
    assert outcome.code == 2
    assert Path("mine/README.md").read_text() == "mine"


def test_running_text_and_rows_can_be_mixed(material: Path):
    results = trained(
        "clm",
        *scratch("gpt2"),
        "--data",
        material / "prose.txt",
        "--data",
        material / "text.jsonl",
        "--max-steps",
        1,
        "-o",
        "run",
    )
    assert results["data"]["train"]["rows_used"] + results["data"]["eval"]["rows_used"] == 300


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["m2m_100", "mbart", "blenderbot"],
)
def test_encoder_decoders_without_a_shift_of_their_own_or_with_an_odd_one_train(model: str, material: Path):
    results = trained(
        "seq2seq",
        "--from-scratch",
        "--model",
        model,
        "--model-config",
        TINY[model],
        "--tokenizer",
        "unigram:60",
        "--data",
        material / "pairs.jsonl",
        "--epochs",
        4,
        "--lr",
        1e-2,
        "-o",
        "run",
    )
    assert results["metrics"]["eval_loss"] < results["initial_metrics"]["eval_loss"]
    from lmtrain.modeling.loss import decoder_inputs

    network = AutoModelForSeq2SeqLM.from_pretrained("run")
    tokenizer = AutoTokenizer.from_pretrained("run")
    start = decoder_inputs(network, torch.tensor([[5, tokenizer.eos_token_id]]))[0, 0]
    assert start == network.generation_config.decoder_start_token_id


@pytest.mark.parametrize(("model", "positions"), [("roberta", 39), ("mpnet", 38), ("bert", 40)])
def test_positions_are_those_that_can_be_reached(model: str, positions: int, material: Path):
    run = [
        "mlm",
        "--from-scratch",
        "--model",
        model,
        "--tokenizer",
        "wordpiece:200",
        "--data",
        str(material / "text.jsonl"),
        "--max-steps",
        1,
        "--model-config",
        "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,max_position_embeddings=40",
    ]
    outcome = lmtrain(*run, "-L", positions, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert f"{positions} positions" in lmtrain(*run, "-L", positions + 1, "-o", "more").err


def test_a_damaged_checkpoint_is_passed_over_and_named(material: Path):
    run = six_steps_saved_by_two(material)
    (Path("run/checkpoints/checkpoint-6") / "trainer_state.json").write_text('{"global_st')
    weights = Path("run/checkpoints/checkpoint-4/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-7])
    outcome = lmtrain(*run, "--max-steps", 7, "--resume", "auto")
    message = outcome.err.replace("\n", " ")
    assert outcome.code == 0, outcome.err
    assert "skipping checkpoint-6: trainer_state.json is damaged" in message
    assert "skipping checkpoint-4: model.safetensors is damaged: " in message
    assert "resuming from run/checkpoints/checkpoint-2" in message


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_written(material: Path):
    outcome = lmtrain(
        "clm", *scratch("gpt2"), "--data", material / "text.jsonl", "--report-to", "comet_ml", "-o", "run"
    )
    assert outcome.code == 2
    assert "--report-to" in outcome.err
    assert not Path("run").exists()
