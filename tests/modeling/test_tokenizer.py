"""The tokenizer of a model."""

import shutil
from pathlib import Path

from conftest import lmtrain, scratch
from transformers import AutoTokenizer


def test_bare_vocabulary_file_loads_as_tokenizer(material: Path, bert: Path):
    made = AutoTokenizer.from_pretrained(bert)
    Path("vocabulary").mkdir()
    Path("vocabulary/vocab.txt").write_text("\n".join(made.convert_ids_to_tokens(range(len(made)))), encoding="utf-8")
    Path("undeclared").mkdir()
    shutil.copy(bert / "tokenizer.json", "undeclared")
    for folder in ("vocabulary", "undeclared"):
        data = ["--data", material / "text.jsonl", "--max-steps", 1]
        outcome = lmtrain("mlm", *scratch("bert")[:5], "--tokenizer", folder, *data, "-o", f"run-{folder}")
        assert outcome.code == 0, outcome.err
        assert AutoTokenizer.from_pretrained(f"run-{folder}").mask_token == "[MASK]"
    assert "declares no mask_token" in outcome.err.replace("\n", " ")
