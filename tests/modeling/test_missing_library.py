"""A library that a model needs is named where it is not installed."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import lmtrain

from lmtrain.modeling.missing_library import missing_library

MESSAGES = {
    "fugashix": "You need to install fugashix to use MecabTokenizer. See https://pypi.org/project/fugashi/ for installation.",
    "bitsandbytesx": "Using `bitsandbytesx` 4-bit quantization requires bitsandbytesx: `pip install -U bitsandbytesx>=0.46.1`",
    "gptqmodelx": "Loading a GPTQ quantized model requires gptqmodelx (`pip install gptqmodelx`) library.",
    "auto-roundx": "Loading an AutoRound quantized model requires auto-roundx library (`pip install 'auto-roundx>=0.5'`)",
    "einopsx": "This modeling file requires the following packages: einopsx. Run `pip install einopsx`",
    "Levenshteinx": "\nNougatTokenizer requires the Levenshteinx library but it was not found in your environment.",
}


@pytest.mark.parametrize("library", MESSAGES)
def test_library_is_named(library: str):
    reason = missing_library("model", "m", ImportError(MESSAGES[library]))
    assert reason == f"the model needs the library {library}, which is not installed: pip install {library}"


def test_library_behind_another_error_is_named():
    try:
        try:
            import no_such_module_of_ours  # noqa: F401
        except ImportError as error:
            raise ValueError("the tokenizer is broken") from error
    except ValueError as error:
        assert "no_such_module_of_ours" in str(missing_library("tokenizer", "m", error))


def test_other_fault_names_no_library():
    assert missing_library("model", "m", ValueError("no such file")) is None


def test_library_that_is_installed_is_not_asked_for():
    reason = missing_library("model", "m", ImportError("needs torch>=99: `pip install torch>=99`"))
    assert reason is not None
    assert "does not fit: needs torch>=99" in reason


@pytest.mark.skipif(find_spec("fugashi") is not None, reason="fugashi is installed")
def test_tokenizer_without_its_library_ends_in_one_line(material: Path):
    folder = Path("mecab")
    folder.mkdir()
    sizes = {
        "vocab_size": 10,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"], **sizes})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "BertJapaneseTokenizer",
                "word_tokenizer_type": "mecab",
                "subword_tokenizer_type": "wordpiece",
            }
        )
    )
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde"]))
    outcome = lmtrain("mlm", "--model", folder, "--from-scratch", "-d", material / "text.jsonl")
    assert outcome.code == 3
    assert outcome.err.replace("\n", " ").endswith(
        "needs the library fugashi, which is not installed: pip install fugashi "
    )


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantised_weights_without_their_library_end_in_one_line(gpt2: Path, material: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "quantised"
    shutil.copytree(gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    }
    (folder / "config.json").write_text(json.dumps(config))
    outcome = lmtrain("eval", "--model", folder, "-d", material / "text.jsonl")
    assert outcome.code == 3
    assert "the model needs the library bitsandbytes" in outcome.err.replace("\n", " ")
