"""The tokenizer of a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import lmtrain, scratch
from tiny_tokenizers import KINDS, MIXED, ROLES, byte_bpe, metaspace_bpe, with_gap
from tokenizers import Tokenizer, normalizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from lmtrain.config.model import Model
from lmtrain.errors import InputError
from lmtrain.modeling.tokenizer import LoadedTokenizer, load_tokenizer
from lmtrain.modeling.tokenizer_checks import check_on_data


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


# --- tokenizer.json decides what the tokens are ----------------------------------------------------------------------


def folder_of(tokenizer: Tokenizer, model_type: str | None = None, **config: Any) -> str:
    folder = Path("model")
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if model_type:
        ids = {"bos_token_id": 2, "eos_token_id": 3, "vocab_size": tokenizer.get_vocab_size()}
        (folder / "config.json").write_text(json.dumps({**AutoConfig.for_model(model_type).to_diff_dict(), **ids}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "roberta", "t5", "qwen2", "albert"])
def test_tokens_are_those_of_tokenizer_json(model_type: str, kind: str):
    in_file = KINDS[kind]()
    folder = folder_of(in_file, model_type)
    loaded = load_tokenizer(Model(name=folder))
    loaded.tokenizer.save_pretrained("saved")
    again = load_tokenizer(Model(name="saved"))
    for text in MIXED:
        right = in_file.encode(text, add_special_tokens=False).ids
        assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == right
        assert again.tokenizer(text, add_special_tokens=False)["input_ids"] == right
    assert loaded.tokenizer.eos_token == "</s>"


def test_class_that_makes_other_tokens_is_reported():
    loaded = load_tokenizer(Model(name=folder_of(metaspace_bpe(), "gpt2")))
    assert any("GPT2Tokenizer" in note and "tokens are those of the file" in note for note in loaded.notes)
    assert len(loaded.tokenizer) == metaspace_bpe().get_vocab_size()


def test_special_tokens_that_the_class_invents_are_left_out():
    loaded = load_tokenizer(Model(name=folder_of(byte_bpe(), "gpt2")))
    assert any("adds <|endoftext|>" in note for note in loaded.notes)
    assert len(loaded.tokenizer) == byte_bpe().get_vocab_size()
    assert (loaded.tokenizer.bos_token, loaded.tokenizer.eos_token) == ("<s>", "</s>")


def test_class_of_a_multilingual_model_stays_and_cuts_as_the_file():
    in_file = metaspace_bpe()
    in_file.add_special_tokens(["en_XX", "ro_RO", "<mask>"])
    loaded = load_tokenizer(Model(name=folder_of(in_file, "mbart", src_lang="en_XX", tgt_lang="ro_RO")))
    if hasattr(loaded.tokenizer, "src_lang"):
        assert loaded.tokenizer("Hello", add_special_tokens=False)["input_ids"] == in_file.encode("Hello").ids


def test_data_that_the_class_cuts_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch):
    from lmtrain.modeling import tokenizer_checks

    folder = folder_of(metaspace_bpe(), "gpt2")
    made = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match=r"--tokenizer .*tokenizer.json takes the tokens of the file"):
        check_on_data(made, ["안녕하세요 모델"])
    monkeypatch.setattr(tokenizer_checks, "encoder", lambda tokenizer: lambda texts: [[0] for _ in texts])
    check_on_data(made, ["안녕하세요 모델"])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer.json", "mine.json", "deep/er/tokenizer.json"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_tokenizer_json_alone_is_taken_with_its_roles(name: str, as_folder: bool):
    path = Path("tok") / name
    path.parent.mkdir(parents=True)
    byte_bpe().save(str(path))
    if as_folder and path.name != "tokenizer.json":
        pytest.skip("a folder is known by tokenizer.json")
    tokenizer, notes, _ = load_tokenizer(
        Model(name="gpt2", from_scratch=True, tokenizer=str(path.parent if as_folder else path))
    )
    assert {role: getattr(tokenizer, role) for role in ROLES} == ROLES
    assert tokenizer(MIXED[0], add_special_tokens=False)["input_ids"] == byte_bpe().encode(MIXED[0]).ids
    assert any("using" in note for note in notes)


def test_path_of_tokenizer_json_takes_what_stands_beside_it():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), eos_token="<pad>", chat_template="{{ 1 }}")
    tokenizer.save_pretrained("tok")
    loaded = load_tokenizer(Model(name="gpt2", from_scratch=True, tokenizer="tok/tokenizer.json"))
    assert (loaded.tokenizer.eos_token, loaded.tokenizer.chat_template) == ("<pad>", "{{ 1 }}")


SENTENCEPIECE = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "characters": {"model_type": "char"},
    "bytes": {"byte_fallback": True, "character_coverage": 0.98, "vocab_size": 340},
    "bpe and bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 340},
    "as it is": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "folded": {"normalization_rule_name": "nfkc_cf"},
    "no prefix": {"add_dummy_prefix": False},
    "own marks": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "control_symbols": ["<mask>"]},
    "own pieces": {"user_defined_symbols": ["(", ")", "<sep>", "모델"]},
    "over spaces": {"model_type": "bpe", "split_by_whitespace": False},
}


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@pytest.mark.parametrize("as_folder", [False, True])
def test_sentencepiece_model_cuts_as_sentencepiece(kind: str, as_folder: bool):
    lines = [*MIXED, *(f"sentence {n} of the text,  with {n * 7} numbers" for n in range(300))]
    options = {"vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1, **SENTENCEPIECE[kind]}
    Path("tok").mkdir()
    path = Path("tok/own.model")
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **options)
    own = sentencepiece.SentencePieceProcessor(model_file=str(path))
    given = str(path.parent if as_folder else path)
    tokenizer, notes, _ = load_tokenizer(Model(name="llama", from_scratch=True, tokenizer=given))
    assert not [note for note in notes if "otherwise" in note]
    for text in [*MIXED, "  two  spaces ", "한국어 ½ ﬁne 🙂", "", "Numbers 1, 2 & 3", "f(x)<sep>한국어모델 (y)"]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text), text
        assert tokenizer.decode(own.encode(text)) == own.decode(own.encode(text)).replace(" ⁇ ", "<unk>"), text
    roles = {"bos_token": own.bos_id(), "eos_token": own.eos_id(), "unk_token": own.unk_id()}
    assert {role: getattr(tokenizer, f"{role}_id") for role in roles} == {
        role: index if index >= 0 else None for role, index in roles.items()
    }


def test_sentencepiece_model_of_words_is_refused():
    with Path("own.model").open("wb") as file:
        options = {"model_type": "word", "vocab_size": 9, "hard_vocab_limit": False, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(MIXED), model_writer=file, **options)
    with pytest.raises(InputError, match="of whole words is not read"):
        load_tokenizer(Model(name="llama", from_scratch=True, tokenizer="own.model"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.model", b"no model"),
        ("a.json", b"{}"),
        ("a.json", b"{"),
        ("a.txt", b"word"),
        ("a.model", b""),
        ("a.spm", b"\x0a"),
    ],
)
def test_file_that_holds_no_tokenizer_is_refused_in_one_line(name: str, content: bytes, material: Path):
    Path(name).write_bytes(content)
    data = ["--data", material / "text.jsonl"]
    outcome = lmtrain("clm", *scratch("gpt2")[:5], "--tokenizer", name, *data)
    assert outcome.code == 3
    assert "--tokenizer takes tokenizer.json" in outcome.err.replace("\n", " ")


def test_file_whose_name_begins_like_a_specification_is_taken():
    from lmtrain.config.model_checks import check_model

    Path("bpe-tokenizer").mkdir()
    check_model("clm", Model(name="gpt2", from_scratch=True, tokenizer="bpe-tokenizer"))


# --- the tokenizer of another model ----------------------------------------------------------------------------------


def compared(given: Tokenizer, **roles: str) -> LoadedTokenizer:
    own = folder_of(byte_bpe())
    PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), **ROLES).save_pretrained(own)
    PreTrainedTokenizerFast(tokenizer_object=given, **{**ROLES, **roles}).save_pretrained("given")
    return load_tokenizer(Model(name=own, tokenizer="given"))


def test_tokenizer_whose_ids_mean_other_pieces_is_refused():
    for texts in (["mitochondria and ribosome"], ["다른 말뭉치 에서 배운 토크나이저"]):
        with pytest.raises(
            InputError,
            match=r"not the tokenizer of model: .* ids mean other pieces .*; leave it out, or train from scratch",
        ):
            compared(byte_bpe(texts))


def test_own_tokenizer_in_another_folder_is_taken():
    assert not compared(byte_bpe()).warnings


def test_own_tokenizer_with_more_tokens_is_taken():
    more = byte_bpe()
    more.add_special_tokens(["<user>", "<bot>"])
    assert not compared(more).warnings


def test_tokenizer_with_another_end_token_is_reported():
    (warning,) = compared(byte_bpe(), eos_token="<pad>").warnings
    assert "its eos_token is <pad>, that of model is </s>" in warning


def test_tokenizer_that_cuts_otherwise_is_reported():
    changed = byte_bpe()
    changed.normalizer = normalizers.Lowercase()
    (warning,) = compared(changed).warnings
    assert "otherwise than the tokenizer of model" in warning


def test_tokenizer_with_one_other_piece_is_reported():
    document = json.loads(byte_bpe().to_str())
    vocabulary = document["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["zzz"] = vocabulary.pop(last)
    document["model"]["merges"] = [m for m in document["model"]["merges"] if "".join(m) != last]
    assert "not quite the tokenizer of model" in compared(Tokenizer.from_str(json.dumps(document))).warnings[0]


# --- ids with gaps ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "model"), [("clm", "gpt2"), ("mlm", "bert"), ("seq2seq", "t5")])
@pytest.mark.parametrize("index", [130, 70_000])
def test_table_from_scratch_holds_the_largest_id(objective: str, model: str, index: int, material: Path):
    gap = with_gap(metaspace_bpe(["the cat sees the dog again"]), "<far>", index)
    gap.save("tokenizer.json")
    roles = {**ROLES, "mask_token": "<far>", "cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=gap, **roles).save_pretrained("tok")
    rows = [{"text": "the cat <far> the dog", "source": "the <far> cat", "target": "the dog <far>"}] * 8
    columns = {"seq2seq": ("source", "target")}.get(objective, ("text",))
    Path("d.jsonl").write_text("".join(json.dumps({c: row[c] for c in columns}) + "\n" for row in rows))
    model = [*scratch(model)[:5], "--tokenizer", "tok"]
    outcome = lmtrain(objective, *model, "-d", "d.jsonl", "--max-steps", 1, "--val-split", 0, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/config.json").read_text())["vocab_size"] == index + 1
    assert lmtrain("eval", "--model", "run", "-d", "d.jsonl").code == 0
