"""`lmtrain generate`, against transformers' own generate on the same model."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import lmtrain
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmtrain.errors import UsageError
from lmtrain.objectives import generation
from lmtrain.preprocessing.languages import languages, set_languages


def answers(*arguments) -> list[dict]:
    outcome = lmtrain("generate", *arguments, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_beams_are_those_of_transformers_best_first_and_distinct(model: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(model)
    (answer,) = answers("-m", folder, "-p", "the dog sees the", "--num-beams", 5, "--n-best", 4, "--max-new-tokens", 9)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model == "gpt2":
        network, before = AutoModelForCausalLM.from_pretrained(folder), [tokenizer.bos_token_id]
        ids = before + tokenizer("the dog sees the", add_special_tokens=False)["input_ids"]
    else:
        network, ids = AutoModelForSeq2SeqLM.from_pretrained(folder), tokenizer("the dog sees the")["input_ids"]
    expected = network.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=int),
        num_beams=5,
        num_return_sequences=4,
        max_new_tokens=9,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    cut = len(ids) if model == "gpt2" else 1
    texts = tokenizer.batch_decode(expected.sequences[:, cut:], skip_special_tokens=True)
    outputs = answer["outputs"]
    assert [output["text"] for output in outputs] == texts
    assert [output["score"] for output in outputs] == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)
    assert len(set(texts)) == 4 and answer["output"] == texts[0]
    assert [o["score"] for o in outputs] == sorted((o["score"] for o in outputs), reverse=True)


@torch.no_grad()
def test_masks_are_filled_with_their_probabilities(bert: Path):
    (answer,) = answers("-m", bert, "-p", "the [MASK] sees the <mask> again", "--candidates", 3)
    network, tokenizer = AutoModelForMaskedLM.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    ids = torch.tensor([tokenizer("the [MASK] sees the [MASK] again")["input_ids"]])
    at = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    top = network(ids).logits[0, at].softmax(-1).topk(3)
    assert [[m["token"] for m in mask] for mask in answer["masks"]] == [
        [tokenizer.decode([i]) for i in row] for row in top.indices.tolist()
    ]
    found = [m["probability"] for mask in answer["masks"] for m in mask]
    assert found == pytest.approx(top.values.flatten().tolist(), rel=1e-5)
    assert answer["output"].split()[1] == answer["masks"][0][0]["token"]
    outcome = lmtrain("generate", "-m", bert, "-p", "no mask at all")
    assert outcome.code == 3 and "write [MASK] where words are missing" in outcome.err


def test_lines_of_standard_input_are_prompts(t5: Path, monkeypatch: pytest.MonkeyPatch):
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", "generate", "--model", str(t5), "--json"],
        input="the dog\n\nthe cat\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == ["the dog", "the cat"]


def test_files_are_read_as_for_training(t5: Path, material: Path):
    rows = answers("-m", t5, "-d", f"{material / 'pairs.jsonl'}#20")
    assert [row["input"] for row in rows][:1] == ["the cat sees the cat"] and len(rows) == 20
    Path("odd.csv").write_text("id,what\n1,the dog\n")
    assert answers("-m", t5, "-d", "odd.csv", "--column", "what")[0]["input"] == "the dog"
    outcome = lmtrain("generate", "-m", t5, "-d", "odd.csv")
    assert outcome.code == 3 and "It has id, what; name it with --column" in outcome.err


def test_sampling_follows_the_seed(gpt2: Path):
    flags = ["-m", gpt2, "-p", "the", "--temperature", 2.0, "--n-best", 3, "--max-new-tokens", 12]
    assert answers(*flags) == answers(*flags)
    assert answers(*flags) != answers(*flags, "--seed", 1)
    assert len(answers(*flags)[0]["outputs"]) == 3


@pytest.mark.slow
def test_a_prompt_is_asked_as_in_training(material: Path):
    from conftest import scratch, trained

    for name, columns in (
        ("prompts", ["--prompt-column", "question", "--completion-column", "answer"]),
        ("chats", []),
    ):
        trained(
            "clm",
            *scratch("gpt2"),
            "-d",
            material / f"{name}.jsonl",
            *columns,
            "-o",
            name,
            "--max-steps",
            60,
            "--lr",
            1e-2,
        )
    (answer,) = answers("-m", "prompts", "-p", "What of the cat?")
    assert "the" in answer["output"] and "\n" not in answer["output"]
    (chat,) = answers("-m", "chats", "-p", "Tell me of the dog.")
    assert "the" in chat["output"]
    (raw,) = answers("-m", "chats", "-p", "Tell me of the dog.", "--no-chat")
    assert raw["output"] != chat["output"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["-p", "a", "--n-best", "3", "--num-beams", "2"], 2, "needs --num-beams 3 or more, or --do-sample"),
        (["-p", "a", "-d", "b"], 2, "give only one of them"),
        (["-d", "nothing.txt"], 3, "nothing.txt: no such file"),
        (["-p", "dog " * 300], 3, "the model has 128 positions; shorten it"),
        (["-p", "a", "--temperature", "0"], 2, "greater than 0"),
        (["-p", "a", "--temperature", "1", "--num-beams", "2", "--n-best", "3"], 2, "needs --num-beams 3 or more"),
        (["-d", "gap.jsonl"], 3, "gap.jsonl, line 2, column 'text': is missing"),
    ],
)
def test_mistakes_are_one_sentence(flags: list[str], code: int, message: str, gpt2: Path):
    Path("gap.jsonl").write_text('{"text": "a"}\n{"foo": "b"}\n')
    outcome = lmtrain("generate", "--model", gpt2, *flags)
    assert outcome.code == code, outcome.err
    assert message in outcome.err and "Traceback" not in outcome.err


def test_empty_prompts_are_counted(t5: Path):
    Path("few.txt").write_text("the dog\n\n \nthe cat\n")
    outcome = lmtrain("generate", "-m", t5, "-d", "few.txt", "--json", "-q")
    assert len(outcome.out.splitlines()) == 2 and "2 empty prompts are left out" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--num-beams", "2"], ["--temperature", "1", "--n-best", "2"]])
def test_a_terminal_gets_the_text_once(flags: list[str], gpt2: Path):
    """On a terminal a single greedy completion is streamed; beams and several outputs cannot be."""
    pty = pytest.importorskip("pty")
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "generate",
        "-m",
        str(gpt2),
        "-p",
        "the dog sees the",
        "--max-new-tokens",
        "6",
        *flags,
    ]
    printed = bytearray()

    def read(descriptor: int) -> bytes:
        content = os.read(descriptor, 1024)
        printed.extend(content)
        return content

    assert pty.spawn(command, read) == 0, printed.decode()
    assert "Traceback" not in printed.decode() and printed.strip()


def test_ids_beyond_the_vocabulary_do_not_crash(t5: Path):
    from lmtrain.objectives.generation import decode

    tokenizer = AutoTokenizer.from_pretrained(t5)
    known = tokenizer("the dog", add_special_tokens=False)["input_ids"]
    assert decode(tokenizer, [-100, *known, len(tokenizer), 10**9]) == "the dog"


def multilingual(kind: str) -> object:
    """A tiny tokenizer of a multilingual family, with the languages that the real ones have."""
    import sentencepiece
    from transformers import M2M100Tokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

    text = ["the dog sees the cat", "der hund sieht die katze", "le chien voit le chat"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=50, hard_vocab_limit=False, minloglevel=2
    )
    Path("sp.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    if kind == "m2m_100":
        vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        for number in range(3, pieces.get_piece_size()):
            vocabulary.setdefault(pieces.id_to_piece(number), len(vocabulary))
        Path("vocab.json").write_text(json.dumps(vocabulary))
        return M2M100Tokenizer("vocab.json", "sp.model", src_lang="en", tgt_lang="de")
    entries = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    entries += [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, pieces.get_piece_size())]
    if kind == "nllb":
        return NllbTokenizer(vocab={piece: i for i, (piece, _) in enumerate(entries)}, merges=[])
    return {"mbart": MBartTokenizer, "mbart50": MBart50Tokenizer}[kind](vocab=entries)


LANGUAGES = {
    "m2m_100": ("en", "de"),
    "nllb": ("eng_Latn", "deu_Latn"),
    "mbart": ("en_XX", "de_DE"),
    "mbart50": ("en_XX", "de_DE"),
}


@pytest.mark.parametrize("kind", LANGUAGES)
def test_generation_starts_with_the_target_language(kind: str):
    """As each family does: mBART from the language itself, the others from the end token and then the language."""
    tokenizer, (source, target) = multilingual(kind), LANGUAGES[kind]
    set_languages(tokenizer, source, target)
    assert {source, target} <= set(languages(tokenizer))
    config = AutoConfig.for_model(
        "mbart" if "mbart" in kind else "m2m_100",
        vocab_size=300,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    network = AutoModelForSeq2SeqLM.from_config(config).eval()
    told = generation.generation_arguments(network, tokenizer, generation.GenerationSettings(max_new_tokens=4))
    written = network.generate(torch.tensor([tokenizer("the dog")["input_ids"]]), **told)[0].tolist()
    code = tokenizer.convert_tokens_to_ids(f"__{target}__" if kind == "m2m_100" else target)
    assert written[:1] == [code] if kind == "mbart" else written[:2] == [2, code]
    unset = multilingual(kind)
    if unset.tgt_lang is None:
        with pytest.raises(UsageError, match=r"--(source|target)-lang is missing"):
            set_languages(unset, source if unset.src_lang is None else None, None)
    with pytest.raises(UsageError, match=r"--target-lang .* does not know this language; (did you mean '|it knows )"):
        set_languages(tokenizer, source, target + "X")


@pytest.mark.parametrize("model", ["gpt2", "t5", "bert"])
@pytest.mark.parametrize("flags", [[], ["--num-beams", 3], ["--do-sample"]])
def test_plain_text_is_one_output_per_prompt(model: str, flags: list, request: pytest.FixtureRequest):
    folder, mask = request.getfixturevalue(model), " [MASK]" if model == "bert" else ""
    prompts = [part for word in ("the dog", "the cat", "the king") for part in ("-p", word + mask)]
    printed = lmtrain("generate", "-m", folder, *prompts, *flags, "--max-new-tokens", 6)
    assert printed.code == 0, printed.err
    expected = [answer["output"] for answer in answers("-m", folder, *prompts, *flags, "--max-new-tokens", 6)]
    assert len(expected) == 3
    lines = "".join(f"{escaped(text)}\n" for text in expected)
    shown = printed.out if model != "bert" else "".join(printed.out.splitlines(keepends=True)[::2])
    assert shown == lines


def escaped(text: str) -> str:
    """As it is printed: an untrained model writes control characters, too."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
