"""Settings that change between a run and its continuation are refused by name, unless they may change."""

from pathlib import Path
from typing import Any

import pytest
from conftest import lmtrain, outcome_of, scratch, trained

from lmtrain.runs import compatibility
from lmtrain.training.trainer import ExactTrainer

SIZES = "n_embd=32,n_layer=2,n_head=2,n_positions=128"


@pytest.fixture(scope="module")
def run(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """(folder of a run that has completed two of four steps, its command)."""
    folder = tmp_path_factory.mktemp("drift")
    data = folder / "text.jsonl"
    data.write_bytes((material / "text.jsonl").read_bytes())
    command = ["clm", *scratch("gpt2"), "-d", data, "-o", folder / "run", "-L", 64, "--save-every", 2, "--keep", 9]
    trained(*command, "--max-steps", 2)
    return folder, [*command, "--max-steps", 4, "--resume", folder / "run/checkpoints/checkpoint-2"]


CHANGED = {
    "model.config": ["--model-config", SIZES.replace("n_layer=2", "n_layer=3")],
    "model.tokenizer": ["--tokenizer", "bpe:290"],
    "model.attn": ["--attn", "eager"],
    "data.max_length": ["-L", 32],
    "data.packing": ["--no-packing"],
    "data.packing_strategy": ["--packing-strategy", "blocks"],
    "data.val_split": ["--val-split", 0.1],
    "train.seed": ["--seed", 7],
    "train.batch_size": ["-b", 4],
    "train.grad_accum": ["--grad-accum", 2],
    "train.learning_rate": ["--lr", 1e-3],
    "train.lr_scheduler": ["--lr-scheduler", "cosine"],
    "train.weight_decay": ["--weight-decay", 0.1],
    "train.precision": ["--precision", "bf16"],
    "train.adam_beta2": ["--set", "train.adam_beta2=0.95"],
    "eval.best_metric": ["--best-metric", "token_accuracy"],
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_setting_is_refused_by_name(name: str, run: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ExactTrainer, "train", None)  # would be called
    outcome = lmtrain(*run[1], *CHANGED[name], "-o", run[0] / "other")
    assert outcome.code == 2, outcome.err
    assert f"--resume: {name} " in outcome.err
    assert f"--allow-drift {name}" in outcome.err.replace("\n", " ")
    assert not (run[0] / "other").exists()


@pytest.mark.parametrize("change", ["one byte", "one row more", "another order"])
def test_changed_data_is_refused(change: str, run: tuple[Path, list[Any]]):
    data = run[0] / "text.jsonl"
    before = data.read_text()
    lines = before.splitlines()
    data.write_text(
        {
            "one byte": before.replace("cat", "cut", 1),
            "one row more": before + '{"text": "one row more"}\n',
            "another order": "\n".join([lines[1], lines[0], *lines[2:]]) + "\n",
        }[change]
    )
    try:
        outcome = lmtrain(*run[1], "-o", run[0] / "other")
    finally:
        data.write_text(before)
    assert outcome.code == 2
    assert "--resume: data.train has changed" in outcome.err


def test_harmless_settings_may_change_and_allowed_drift_is_reported(run: tuple[Path, list[Any]]):
    free = [
        "--save-every",
        3,
        "--log-every",
        1,
        "--eval-every",
        1,
        "--keep",
        3,
        "--on-nonfinite",
        "skip 3",
        "--gradient-checkpointing",
        "--set",
        "train.dataloader_num_workers=0",
    ]
    other = run[0] / "free"
    outcome = lmtrain(*run[1], *free, "-o", other, "--allow-drift", "weight-decay", "--weight-decay", 0.1)
    assert outcome.code == 0, outcome.err
    assert "resuming although train.weight_decay was 0.0 and is 0.1" in outcome.err
    assert outcome_of(other)[1][-1][0] == 4


def test_moved_data_counts_as_unchanged(run: tuple[Path, list[Any]]):
    moved = run[0] / "moved.jsonl"
    moved.write_bytes((run[0] / "text.jsonl").read_bytes())
    assert (
        lmtrain(*[moved if part == run[0] / "text.jsonl" else part for part in run[1]], "-o", run[0] / "m").code == 0
    )


def test_unknown_name_in_allow_drift_gets_a_suggestion(run: tuple[Path, list[Any]]):
    outcome = lmtrain(*run[1], "-o", run[0] / "other", "--allow-drift", "train.learning_rat")
    assert outcome.code == 2
    assert "did you mean 'train.learning_rate'?" in outcome.err


def test_changed_library_versions_are_reported():
    before = {"versions": {"torch": "2.11.0", "transformers": "5.17.0"}}
    now = {"torch": "2.13.0", "transformers": "5.17.0"}
    assert compatibility.version_warnings(before, now) == [
        "saved with torch 2.11.0, resuming with 2.13.0: results may differ in the last digits"
    ]
