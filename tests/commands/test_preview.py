"""`lmtrain preview`: it shows the batches of training, and no text can control the terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import HEAVY, imported_by, lmtrain, scratch
from rich.cells import cell_len

from lmtrain.commands.preview import render
from lmtrain.objectives import mlm
from lmtrain.preprocessing.batch import Batch, Row

MODELS = {"clm": "gpt2", "mlm": "bert", "seq2seq": "t5"}
HOSTILE = [
    "\x1b[2J\x1b]0;title\x07 red\x9b31m \u202eabc\u202c \u2066x\u2069 z\u200bw\u200dj\ufeff",
    "👨‍👩‍👧 🇰🇷 שלום مرحبا क्ष é é 각 각 최고네요..뒤늦게 발견한 보석같은 영화!\r\n\tㅋㅋ  끝",
    "[red]no markup[/] :smile: {a=b} ‹c› (d) " + "x" * 200,
] * 8


def previewed(objective: str, data: Path, *more: Any) -> dict[str, Any]:
    outcome = lmtrain("preview", objective, *scratch(MODELS[objective]), "--data", data, *more, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.json


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for batch in document["batches"] for row in batch["rows"]]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def text(tokens: list[dict[str, Any]], *roles: str) -> str:
    """The original text of the tokens with these roles."""
    return "".join(t.get("label_text", t["text"]) for t in tokens if t["role"] in roles)


def written(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


# --- roles -----------------------------------------------------------------------------------------------------------


def test_every_token_but_the_first_of_a_packed_text_is_trained(material: Path):
    known = {f"<s>{row['text']}</s>" for row in read(material / "text.jsonl")}
    rows = rows_of(previewed("clm", material / "text.jsonl", "--batches", 99, "--val-split", 0))
    assert any(len(row.get("texts", [])) > 3 for row in rows)
    for row in rows:
        tokens = [token for token in row["tokens"] if token["role"] != "pad"]
        for length in row.get("texts", [len(tokens)]):
            document, tokens = tokens[:length], tokens[length:]
            assert [t["role"] for t in document] == ["ignored"] + ["trained"] * (length - 1)
            assert "label" not in document[0] and all(t["label"] == t["id"] for t in document[1:])
            assert text(document, "ignored", "trained") in known
        assert not tokens


def test_only_the_completion_of_a_prompt_is_trained(material: Path):
    known = {(f"<s>{row['question']}\n", row["answer"] + "</s>") for row in read(material / "prompts.jsonl")}
    columns = "--prompt-column", "question", "--completion-column", "answer"
    rows = rows_of(previewed("clm", material / "prompts.jsonl", *columns, "--batches", 99, "--val-split", 0))
    assert {(text(row["tokens"], "prompt"), text(row["tokens"], "trained")) for row in rows} == known


def test_only_the_assistants_turns_of_a_chat_are_trained(material: Path):
    known = {
        "".join(message["content"] + "</s>" for message in row["messages"] if message["role"] == "assistant")
        for row in read(material / "chats.jsonl")
    }
    rows = rows_of(previewed("clm", material / "chats.jsonl", "--batches", 2))
    assert len(rows) == 16
    for row in rows:
        assert text(row["tokens"], "trained") in known
        assert "user" in text(row["tokens"], "prompt")


def test_masked_replaced_and_kept_tokens_show_the_original_token(material: Path):
    known = {f"[CLS] {row['text']}[SEP]" for row in read(material / "text.jsonl")}
    rows = rows_of(
        previewed(
            "mlm",
            material / "text.jsonl",
            "--no-packing",
            "--batches",
            99,
            "--mask-probability",
            0.4,
            "--mask-split",
            "40/30/30",
        )
    )
    tokens = [token for row in rows for token in row["tokens"]]
    assert {token["role"] for token in tokens} - {"pad"} == {"masked", "replaced", "kept", "ignored"}
    assert {text(row["tokens"], "masked", "replaced", "kept", "ignored") for row in rows} <= known
    for token in tokens:
        wanted = token.get("label") is not None
        fate = "masked" if token["text"] == "[MASK]" else "kept" if token.get("label") == token["id"] else "replaced"
        assert token["role"] == fate if wanted else token["role"] in ("ignored", "pad")


def test_decoder_input_of_a_pair_is_the_labels_shifted_right(material: Path):
    known = {(row["source"] + "</s>", row["target"] + "</s>") for row in read(material / "pairs.jsonl")}
    rows = rows_of(previewed("seq2seq", material / "pairs.jsonl", "--batches", 99, "--val-split", 0))
    found = {(text(row["source"], "ignored").strip(), text(row["labels"], "trained").strip()) for row in rows}
    assert found == known
    for row in rows:
        labels, given = ([token["id"] for token in row[name]] for name in ("labels", "decoder_input"))
        assert given == [0, *(0 if label == -100 else label for label in labels[:-1])]
        assert [t["role"] == "pad" for t in row["labels"]] == [label == -100 for label in labels]
        assert [t["role"] == "pad" for t in row["decoder_input"]] == [False, *(label == -100 for label in labels[:-1])]


def test_first_batch_is_the_first_batch_of_training(material: Path, monkeypatch: pytest.MonkeyPatch):
    batches, call = [], mlm.MaskedCollator.__call__

    def seen(self: mlm.MaskedCollator, rows: list[Row]) -> Batch:
        batches.append(call(self, rows))
        return batches[-1]

    monkeypatch.setattr(mlm.MaskedCollator, "__call__", seen)
    flags = [*scratch("bert"), "--data", material / "text.jsonl", "-L", 48, "-b", 3, "--val-split", 0]
    assert lmtrain("mlm", *flags, "--max-steps", 1, "--quiet", "-o", "run").code == 0
    asked = [(batch["input_ids"].tolist(), batch["labels"].tolist()) for batch in batches]
    (batch,) = lmtrain("preview", "mlm", *flags, "--json").json["batches"]
    told = [[[t.get(name, -100) for t in row["tokens"]] for row in batch["rows"]] for name in ("id", "label")]
    assert tuple(told) in asked
    assert len(told[0]) == 3


# --- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "file", "flags"),
    [
        ("clm", "text", ["-L", 40]),
        ("clm", "chats", ["-L", 50]),
        ("mlm", "text", ["-L", 40]),
        ("mlm", "text", ["--no-packing", "--batch-tokens", 64]),
        ("seq2seq", "pairs", []),
        ("clm", "text", ["--streaming", "--max-steps", 1, "--no-packing", "-b", 60, "--batches", 1]),
    ],
)
def test_batches_of_an_epoch_add_up_to_the_ledger(material: Path, objective: str, file: str, flags: list[Any]):
    flags = flags if "-b" in flags else [*flags, "-b", 4, "--batches", 999]
    document = previewed(objective, material / f"{file}.jsonl", *flags)
    ledger = document["data"]["train"]
    read_lines = [row[name] for row in rows_of(document) for name in document["lengths"]]
    tokens = [token for line in read_lines for token in line]
    pads = sum(token["role"] == "pad" for token in tokens)
    assert document.get("batches_in_epoch") == (None if "--streaming" in flags else len(document["batches"]))
    assert sum("label" in token for token in tokens) == ledger["tokens_trained"]
    assert document["padding_fraction"] == pytest.approx(ledger["padding_fraction"])
    if file != "text" or "--no-packing" in flags:  # padding-free batches are shown without padding
        places = (len(tokens) - pads) / (1 - ledger["padding_fraction"])
        assert pads <= places * ledger["padding_fraction"] + 1e-6
    else:
        assert pads / len(tokens) == pytest.approx(ledger["padding_fraction"])
    assert document["trained_fraction"] == ledger["tokens_trained"] / (len(tokens) - pads)
    for name, bins in document["lengths"].items():
        lengths = [sum(token["role"] != "pad" for token in row[name]) for row in rows_of(document)]
        assert [bin_["rows"] for bin_ in bins] == [sum(b["from"] <= n <= b["to"] for n in lengths) for b in bins]
        assert sum(bin_["rows"] for bin_ in bins) == len(lengths)


# --- terminal output ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 50])
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_no_text_controls_the_terminal_or_breaks_the_layout(
    monkeypatch: pytest.MonkeyPatch, objective: str, columns: int
):
    data = written(Path("hostile.jsonl"), HOSTILE)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    flags = [*scratch(MODELS[objective])[:-1], "bpe:300" if objective == "clm" else "wordpiece:200", "--data", data]
    coloured = lmtrain("preview", objective, *flags, "-b", 3, "--full", "--explain").out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = lmtrain("preview", objective, *flags, "-b", 3, "--full", "--explain").out
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain != coloured
    assert plain.replace("\n", "").isprintable()
    assert max(cell_len(line) for line in plain.splitlines()) <= columns
    document = lmtrain("preview", objective, *flags, "-b", 3, "--json").out
    assert document.replace("\n", "").isprintable()
    tokens = [token["text"] for row in rows_of(json.loads(document)) for token in row["tokens"]]
    assert ("\x1b" in tokens) == (
        objective == "clm"
    )  # JSON keeps control characters, escaped; BERT's tokenizers drop them


def test_every_role_has_a_mark_and_the_legend_lists_only_roles_that_occur(material: Path):
    words = {"masked": r"\[MASK=\w+\]", "replaced": r"\{\w+=\w+\}", "kept": r" \(\w+\)", "pad": r"‹pad ×\d+›$"}
    flags = [*scratch("bert"), "--data", material / "text.jsonl", "--mask-split", "40/30/30"]
    shown = lmtrain("preview", "mlm", *flags).out
    legend, rows = shown.split("Batch 1", 1)
    for role, mark in words.items():
        assert f"{role}: " in legend
        assert re.search(mark, rows, re.MULTILINE)
    assert "trained: " not in legend and "prompt: " not in legend and "line break" not in legend
    columns = "--prompt-column", "question", "--completion-column", "answer"
    shown = lmtrain("preview", "clm", *scratch("gpt2"), "--data", material / "prompts.jsonl", *columns).out
    assert re.search(r"‹<s>\S*What[^›]*↵›[^›]*·</s>", shown)


def test_long_rows_are_shortened_on_a_terminal_with_a_count_of_the_rest(
    material: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = ["preview", "clm", *scratch("gpt2"), "--data", material / "text.jsonl", "-b", 1]
    monkeypatch.setenv("COLUMNS", "50")
    whole = lmtrain(*flags).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    cut = lmtrain(*flags).out
    assert re.search(r"… \d+ more tokens", cut) and "more tokens" not in whole
    assert lmtrain(*flags, "--full").out == whole


def test_spaces_bytes_and_completed_characters_are_drawn():
    byte = ["\udced", "\udc95", "\udc9c", " \udcec", "\udc95\udc88 a", "b", "  ", "\n"]
    assert render.completed_characters(byte) == ["", "", "한", "", "안", "", "", ""]
    shown = [render.drawable(text, whole) for text, whole in zip(byte, render.completed_characters(byte), strict=True)]
    assert shown == [
        ("", "<ED>"),
        ("", "<95>"),
        ("", "<9C=한>"),
        (" ", "<EC>"),
        ("", "<95 88=안>␣a"),
        ("", "b"),
        ("", "␣␣"),
        ("", "↵"),
    ]
    assert render.drawable("\u0301") == ("", "◌\u0301")
    assert render.drawable("\udc81", "\u0301") == ("", "<81=◌\u0301>")


# --- the command -----------------------------------------------------------------------------------------------------


def test_preview_writes_nothing_and_explains_on_request(material: Path):
    here = set(Path().iterdir())
    flags = [*scratch("t5"), "--data", material / "pairs.jsonl"]
    plain, told = lmtrain("preview", "seq2seq", *flags), lmtrain("preview", "seq2seq", *flags, "--explain")
    assert told.out.removesuffix(plain.out).count(". ") == 1
    assert "learns to write the target" in told.out.replace("\n", " ") and "learns" not in plain.out
    assert plain.out.count("Rows by length of the") == 2 and "tokens trained" in plain.out
    assert set(Path().iterdir()) == here


def test_preview_needs_no_weights(material: Path):
    assert lmtrain("tokenizer", "train", "--data", material / "text.jsonl", "--kind", "bpe:300", "-o", "m").code == 0
    Path("m/config.json").write_text('{"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 9600}')
    Path("r.yaml").write_text(f"objective: clm\nmodel: m\ndata: {{train: {material}/text.jsonl}}\n")
    outcome = lmtrain("preview", "clm", "-c", "r.yaml", "--set", "train.batch_size=2", "--json")
    assert outcome.code == 0, outcome.err
    assert [len(row["tokens"]) <= 32 for row in rows_of(outcome.json)] == [True, True]
    assert lmtrain("clm", "-c", "r.yaml").code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["clm", "--model", "t5", "--from-scratch", "--tokenizer", "bpe:300", "--data", "x"],
            3,
            "use lmtrain seq2seq",
        ),
        (["clm", "--model", "gpt2", "--data", "no.txt"], 3, "no.txt"),
        (["mlm", "--model", "bert", "--data", "x", "--mask-probability", "2"], 2, "--mask-probability"),
        (["clm", "--model", "gpt2", "--data", "x", "--batches", "0"], 2, "--batches"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(arguments: list[str], code: int, message: str):
    outcome = lmtrain("preview", *arguments)
    assert outcome.code == code
    assert message in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [["preview", "--help"], ["preview", "clm", "--help"], ["preview", "mlm", "--model", "t5", "--data", "x"]],
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str]):
    assert not imported_by(*arguments) & set(HEAVY)


def test_help_has_the_flags_of_training_and_its_own():
    shown, training = (lmtrain(*command, "--help").out for command in (["preview", "clm"], ["clm"]))
    flags, of_training = (set(re.findall(r"^│ (--[\w-]+)", text, re.MULTILINE)) for text in (shown, training))
    assert flags - of_training == {"--batches", "--full", "--explain"}
    assert of_training - flags <= {"--dry-run"}
