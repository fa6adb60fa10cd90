"""Messages name flags that exist, and that the command at hand has."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import lmtrain

import lmtrain as package
from lmtrain.cli.app import FLAGGED, app
from lmtrain.cli.flags import canonical

ROOT = Path(str(package.__file__)).parent
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])")
OF_OTHERS = {"cli/launch.py", "commands/exactness.py", "runtime/upstream_names.py"}
"""Modules that write flags of other programs, or no messages."""
OTHER_PROGRAMS = re.compile("zstd|hf download")


@cache
def flags_of_commands() -> dict[str, set[str]]:
    """Command -> its flags without the dashes: `eval`, `tokenizer train`, …"""

    def collect(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
        if hasattr(command, "commands"):
            for inner in command.commands.values():
                yield from collect(inner, f"{name} {inner.name}".strip())
            return
        build = FLAGGED.get(getattr(command.callback, "__wrapped__", None))
        command = build() if build else command
        yield (
            name,
            {option[2:] for p in command.params for option in (*p.opts, *p.secondary_opts) if option[:2] == "--"},
        )

    return dict(collect(typer.main.get_command(app), ""))


@cache
def messages() -> list[tuple[str, str]]:
    """(module, text) of every text in the code that names a flag; docstrings are left out, {…} stands for values."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        module = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in bare | inside:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{…}" for part in node.values)
                found.append((module, "".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((module, node.value))
    return [
        (module, text)
        for module, text in found
        if module not in OF_OTHERS and not OTHER_PROGRAMS.search(text) and FLAG.search(text)
    ]


def test_every_flag_in_a_message_exists():
    known = {"help", "version"}.union(*flags_of_commands().values())
    missing = {
        (module, flag)
        for module, text in messages()
        for flag in FLAG.findall(text)
        if canonical(flag) not in known and not re.search(rf"--{flag}[=-]?\{{", text)  # a name that is put together
    }
    assert not missing


READERS = ("eval", "probe", "tokenizer train", "tokenizer stats")
USERS = ("eval", "generate", "probe")
SHARED: dict[str, tuple[str, ...]] = {
    "config/model_checks.py": (*USERS, "merge"),
    "modeling/configuration.py": (*USERS, "merge", "tokenizer stats"),
    "modeling/network.py": (*USERS, "merge"),
    "modeling/tokenizer.py": USERS,
    "data/sources.py": (*READERS, "generate"),
    "data/readers/text_files.py": (*READERS, "generate"),
    "data/readers/formats.py": (*READERS, "generate"),
    "data/readers/delimited.py": (*READERS, "generate"),
    "data/readers/columnar.py": (*READERS, "generate"),
    "data/readers/conll.py": ("probe",),
    "data/readers/json_files.py": (*READERS, "generate"),
    "data/reading.py": READERS,
    "data/prompts.py": ("generate",),
    "preprocessing/languages.py": ("eval", "generate"),
    "preprocessing/documents.py": ("eval",),
    "preprocessing/tokenizing.py": ("eval",),
    "objectives/clm.py": ("eval",),
    "objectives/mlm.py": ("eval",),
    "objectives/seq2seq.py": ("eval",),
    "objectives/prompting.py": ("generate",),
    "evaluation/evaluator.py": ("eval",),
    "evaluation/scripts.py": ("eval",),
    "evaluation/comparison.py": ("eval",),
    "evaluation/baseline.py": ("eval", "probe"),
    "evaluation/gates.py": ("eval", "probe"),
    "evaluation/gatekeeper.py": ("eval", "probe"),
    "commands/eval.py": ("eval",),
    "commands/generate.py": ("generate",),
    "commands/saved_model.py": ("eval", "generate"),
    **{f"commands/probe/{name}.py": ("probe",) for name in ("probe", "labels", "encoder", "classifier")},
    "runtime/device.py": ("eval", "generate"),
    "runtime/files.py": ("merge",),
}
"""Module -> the commands besides training, preview and bench that its messages reach."""

ONLY_IN_TRAINING = re.compile(
    r"from scratch|lmtrain (clm|mlm|seq2seq)|training with|needs --from-scratch|\(add --from-scratch"
)
"""A message about a new model, or one that names the command."""


def test_messages_of_shared_modules_name_flags_that_every_command_has():
    wrong = {
        (command, module, flag)
        for module, text in messages()
        for command in SHARED.get(module, ())
        for flag in FLAG.findall(text)
        if canonical(flag) not in flags_of_commands()[command]
        and not ONLY_IN_TRAINING.search(text)
        # A message about a flag that the command does not have cannot be reached by it.
        and not ((subject := FLAG.match(text)) and canonical(subject[1]) not in flags_of_commands()[command])
    }
    assert not wrong - EXEMPT


EXEMPT = {
    ("merge", "config/model_checks.py", "attn"),
    ("merge", "modeling/configuration.py", "tokenizer"),
    ("tokenizer stats", "modeling/configuration.py", "tokenizer"),
    ("tokenizer stats", "modeling/configuration.py", "allow-pickle"),
}
"""(command, module, flag) of messages that have another remedy, too."""


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("eval", ["--model", "RUN", "--data", "latin.txt"]),
        ("eval", ["--model", "RUN", "--data", "bad.jsonl"]),
        ("eval", ["--model", "RUN", "--data", "missing.txt"]),
        ("eval", ["--model", "RUN", "--data", "long.jsonl", "--on-long", "error", "-L", "4", "--no-packing"]),
        ("eval", ["--model", "empty", "--data", "long.jsonl", "--objective", "clm"]),
        ("generate", ["--model", "RUN", "--data", "latin.txt"]),
        ("generate", ["--model", "RUN", "--data", "bad.jsonl"]),
        ("generate", ["--model", "RUN", "--data", "columns.csv"]),
        ("generate", ["--model", "RUN", "--prompt", "the " * 400]),
        ("generate", ["--model", "empty", "--prompt", "a"]),
        ("generate", ["--model", "RUN", "--prompt", "a", "--num-return-sequences", "3", "--num-beams", "2"]),
        ("probe", ["--model", "RUN", "--data", "latin.txt"]),
        ("probe", ["--model", "RUN", "--data", "columns.csv"]),
        ("probe", ["--model", "RUN", "--data", "one.csv", "--text-column", "a", "--label-column", "b"]),
        ("probe", ["--model", "empty", "--data", "one.csv", "--text-column", "a", "--label-column", "b"]),
        ("tokenizer train", ["--data", "latin.txt", "-o", "made"]),
        ("tokenizer train", ["--data", "bad.jsonl", "-o", "made"]),
        ("merge", ["empty", "-o", "made"]),
    ],
)
def test_remedies_of_a_command_are_its_own_flags(command: str, arguments: list[str], gpt2: Path):
    Path("latin.txt").write_bytes("Café naïve\n".encode("latin-1") * 3)
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text": 7}\n' * 3)
    Path("long.jsonl").write_text('{"text": "the dog sees the cat again and again"}\n' * 3)
    Path("columns.csv").write_text("first,second\n1,2\n")
    Path("one.csv").write_text("a,b\nthe dog,x\n")
    Path("empty").mkdir()
    outcome = lmtrain(*command.split(), *(str(gpt2) if argument == "RUN" else argument for argument in arguments))
    message = re.sub(r"\s*│?\n│?\s*", " ", outcome.err)
    assert outcome.code in (2, 3) and "Traceback" not in message, message
    own = re.sub(r"lmtrain (clm|mlm|seq2seq)\b.*?(;|$)", "", message)
    assert {canonical(flag) for flag in FLAG.findall(own)} <= flags_of_commands()[command], message
