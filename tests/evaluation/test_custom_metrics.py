"""Metrics loaded through `evaluate`."""

import shutil
from pathlib import Path

from conftest import lmtrain, scratch
from eval_helpers import SHARE_METRIC, evaluated


def test_custom_metric_is_loaded_from_a_file(t5: Path, material: Path):
    Path("share.py").write_text(SHARE_METRIC)
    flags = ["--model", t5, "--data", material / "pairs.jsonl"]
    found = evaluated(*flags, "--metric", "share.py", "--metric", "chrf", "--assert", "share<=1")
    assert found["metrics"]["rows"] == 60 and found["metrics"]["share"] == 0
    assert set(found["metrics"]) == {"eval_loss", "perplexity", "token_accuracy", "chrf", "share", "rows"}
    assert found["signatures"]["share"] == "evaluate:share.py"
    outcome = lmtrain("eval", *flags, "--metric", "blue")
    assert outcome.code == 2 and "did you mean 'bleu'?" in outcome.err
    outcome = lmtrain("seq2seq", *scratch("t5"), "--data", material / "pairs.jsonl", "--metric", "blue", "-o", "never")
    assert outcome.code == 2 and not Path("never").exists(), "a misspelt metric is found before training"


def test_nan_metric_is_null_in_json(t5: Path):
    Path("odd.py").write_text(SHARE_METRIC.replace("sum(map(str.__eq__, predictions, references))", "float('nan')"))
    outcome = lmtrain("eval", "--model", t5, "--metric", "odd.py", "--metric", "chrf", "--json", "-q")
    assert outcome.code == 0 and "NaN" not in outcome.out and outcome.json["metrics"]["share"] is None


def test_recipe_of_a_run_folder_runs_no_custom_metric(t5: Path, tmp_path: Path):
    run = Path(shutil.copytree(t5, tmp_path / "run"))
    Path("evil.py").write_text("import pathlib\npathlib.Path('canary').write_text('x')\n" + SHARE_METRIC)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("  metric: []", "  metric: [evil.py, chrf]"))
    assert "evil.py" in (run / "recipe.yaml").read_text()
    assert set(evaluated("--model", run)["metrics"]) == {"eval_loss", "perplexity", "token_accuracy", "chrf"}
    assert not Path("canary").exists()
