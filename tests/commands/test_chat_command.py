"""`lmtrain chat` in a pseudo-terminal, as a person uses it."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import Outcome, lmtrain, scratch, trained
from typer.testing import CliRunner

from lmtrain.cli.app import app

ASKED = ["안녕하세요", "고양이는 어디에 있어요?", "고마워요"]
ANSWERS = ["네, 안녕하세요!", "고양이는 나무 위에 있습니다.", "천만에요, 또 오세요."]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt one conversation in Korean by heart."""
    folder = tmp_path_factory.mktemp("talker")
    turns = [
        message
        for asked, answer in zip(ASKED, ANSWERS, strict=True)
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    ]
    row = json.dumps({"messages": turns}, ensure_ascii=False)
    (folder / "chats.jsonl").write_text("\n".join([row] * 16), encoding="utf-8")
    config = ["--model-config", "n_positions=512,n_embd=64"]
    trained("clm", *scratch("gpt2"), *config, "--tokenizer", "byte", "--data", folder / "chats.jsonl", "--val-split", 0,
            "--max-steps", 150, "--lr", 5e-3, "-b", 2, "--lr-scheduler", "cosine", "-o", folder / "run")  # fmt: skip
    return folder / "run"


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *arguments: object):
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str, seconds: float = 90) -> str:
        """What is shown up to the pattern, without the codes of the terminal."""
        found, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            os.set_blocking(self.master, False)
            try:
                found += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # the program has ended
                break
            shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", found.decode(errors="ignore")).replace("\r", "")
            if re.search(pattern, shown):
                self.seen += shown
                return shown
        raise AssertionError(f"{pattern!r} was not shown: {found.decode(errors='replace')}")

    def close(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            os.close(self.master)


def piped(lines: str, *arguments: object) -> Outcome:
    """The command with lines from a pipe, each a message."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=lines, prog_name="lmtrain")
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_three_turns_in_korean_with_history_and_a_resize(talker: Path):
    terminal = Terminal("chat", talker)
    terminal.until("you> ")
    terminal.type("/temperature 0\n")
    terminal.until(r"temperature 0\)\n(.|\n)*you> ")
    for number, (asked, answer) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        terminal.type(f"{asked}\n")
        assert answer in terminal.until(r"model> (.|\n)*you> ")
        if number == 0:
            terminal.resize(40, 132)
            os.killpg(terminal.process.pid, signal.SIGWINCH)
    terminal.type("/save talk.jsonl\n")
    terminal.until(r"saved to talk.jsonl, line 1(.|\n)*you> ")
    terminal.type("/reset\n")
    terminal.until(r"forgotten(.|\n)*you> ")
    terminal.type("\x04")  # Ctrl-D
    assert terminal.close() == 0
    messages = json.loads(Path("talk.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in messages[::2]] == ASKED
    # The last answer is the one that `generate` gives for the whole conversation.
    Path("asked.jsonl").write_text(json.dumps({"messages": messages[:-1]}, ensure_ascii=False), encoding="utf-8")
    outcome = lmtrain("generate", "--model", talker, "--data", "asked.jsonl", "--json", "--quiet")
    assert outcome.json["output"] == messages[-1]["content"]


def test_ctrl_c_stops_an_answer_and_not_the_chat(talker: Path):
    terminal = Terminal("chat", talker, "--temperature", 50, "--max-new-tokens", 400)
    terminal.until("you> ")
    terminal.type(f"{ASKED[0]}\n")
    terminal.until(r"model> ")
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.until(r"you> ")
    terminal.type("\x03")
    terminal.until(r"Ctrl-D or /exit ends the chat")
    terminal.type("/exit\n")
    assert terminal.close() == 0


def test_generate_in_a_terminal_without_a_prompt_chats(talker: Path):
    terminal = Terminal("generate", "--model", talker)
    terminal.until("you> ")
    terminal.type("/nonsense\n")
    terminal.until(r"/nonsense: no such command")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_a_model_without_a_template_continues_the_conversation(gpt2: Path):
    outcome = piped("the cat sees\nagain\n/save plain.jsonl\n", "chat", gpt2, "--max-new-tokens", 5)
    assert outcome.code == 0 and "no chat template" in outcome.err
    text = json.loads(Path("plain.jsonl").read_text())["text"]
    assert text.startswith("the cat sees") and "again" in text


def test_a_long_conversation_leaves_out_its_oldest_messages(talker: Path):
    lines = [f"{number} {'가나다 ' * 12}" for number in range(6)]
    outcome = piped("\n".join([*lines, "/save long.jsonl"]) + "\n", "chat", talker, "--max-new-tokens", 20)
    assert outcome.code == 0 and "oldest messages are left out: the model has 512 positions" in " ".join(
        outcome.err.split()
    )
    kept = [m["content"] for m in json.loads(Path("long.jsonl").read_text())["messages"] if m["role"] == "user"]
    assert 0 < len(kept) < 6 and kept == [line.strip() for line in lines[-len(kept) :]]


def test_a_message_longer_than_the_model_is_refused_and_the_chat_goes_on(talker: Path):
    outcome = piped(f"{'가' * 400}\n{ASKED[0]}\n/save after.jsonl\n", "chat", talker, "--max-new-tokens", 5)
    assert outcome.code == 0 and "longer than the model's 512 positions" in " ".join(outcome.err.split())
    assert json.loads(Path("after.jsonl").read_text())["messages"][0]["content"] == ASKED[0]


def test_encoders_do_not_chat(bert: Path):
    outcome = lmtrain("chat", bert)
    assert outcome.code == 2 and "a model of mlm does not chat" in " ".join(outcome.err.split())
