"""Bad, odd and hostile inputs, each given to a real `lmtrain` process: exit code, time, memory, message, counts.

`python tests/stress/hostile.py FOLDER` runs every row of ROWS and writes benchmarks/hostile.md. FOLDER holds the stored
inputs, laid out as the names of the rows say; what can not or should not be stored (links, canaries, device files, huge
files) is made in a temporary folder. `--only WORD` runs the rows whose name holds WORD and writes nothing.

What must become of a row is data, in its fields; there is no other rule but these, for all rows: no traceback, no
control character on the terminal, no canary, no run folder after a refusal, 60 seconds, 2 GB.
"""

import argparse
import csv
import io
import json
import os
import pickle
import platform
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_models import SMALLEST, as_option

BRIEF = ["--max-steps", "1", "--batch-size", "4", "--eval-batch-size", "64", "--samples", "0", "--val-split", "0"]
CLM, SEQ2SEQ = (
    [
        objective,
        "--from-scratch",
        "--model",
        model,
        "--tokenizer",
        "byte",
        "--model-config",
        as_option(SMALLEST[model]),
        *BRIEF,
    ]
    for objective, model in (("clm", "gpt2"), ("seq2seq", "t5"))
)
CLM += ["-L", "32"]
BY_LINE = ["--sample-by", "line"]
WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
"""Root reads everything; without these two capabilities it is held to the modes of files as anybody else is."""
PATIENCE = 400.0
SECRETS = ("hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "sk-proj-0123456789abcdefghijklmnop")


class CannotBeMade(Exception):
    """This machine does not let the row be made, e.g. mount a file system."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    seconds: float
    megabytes: int

    @property
    def message(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("lmtrain: ")]
        return " ".join(lines) or (self.err.strip().splitlines() or [""])[-1]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads(self.out) if self.code == 0 and self.out.startswith("{") else {}


@dataclass(frozen=True)
class Row:
    """An input and what must become of it. `{file}`, `{place}` and `{run}` in `command` are filled in.

    `says` has to stand in the message of a refusal, `counts` in the training ledger of a run, `notes` on its stderr and
    `prints` on its stdout: where both ways are right (`codes` holds 0 and another), each has its own demands.
    """

    name: str
    what: str
    must: str
    command: Sequence[str]
    codes: tuple[int, ...] = (0,)
    says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prints: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    """Must not be on stderr."""
    counts: dict[str, int] = field(default_factory=dict)
    texts: Callable[[Path], list[str]] | None = None
    """Another reading of the file: the byte tokenizer has to give its bytes, between a begin and an end for each text."""
    same_as: str = ""
    """An earlier row whose data must have the same fingerprint."""
    make: Callable[[Path], None] | None = None
    """Makes `name` in the folder that it is given."""
    during: Callable[[Path, Callable[[], bool]], None] | None = None
    """What happens meanwhile, told the folder and whether the process still runs."""
    after: Callable[[Path, Outcome], str] | None = None
    """What is wrong afterwards."""
    seconds: float = 60
    megabytes: int = 2000
    unprivileged: bool = False
    open_files: int | None = None
    leaves_run: bool = False
    """The run folder is there although the run did not end well."""


def loads(name: str, what: str, must: str, *flags: str, base: Sequence[str] = CLM, **expected: Any) -> Row:
    return Row(name, what, must, [*base, "--data", "{file}", *flags], **expected)


def refused(
    name: str, what: str, *says: str, flags: Sequence[str] = (), must: str = "", base: Sequence[str] = CLM, **more: Any
) -> Row:
    named = () if more.pop("unnamed", False) else (Path(name).name,)
    command = [*base, "--data", "{file}", *flags]
    return Row(
        name,
        what,
        must or "refused: " + ", ".join(says or ("its name",)),
        more.pop("command", command),
        more.pop("codes", (3,)),
        (*named, *says),
        **more,
    )


def recipe(name: str, what: str, *says: str, **more: Any) -> Row:
    return refused(name, what, *says, command=["run", "{file}"], codes=(2, 3), **more)


def checkpoint(name: str, what: str, *says: str, **more: Any) -> Row:
    command = ["clm", "--model", "{file}", *BRIEF, "-L", "32", "--data", "{good}"]
    return refused(name, what, *says, command=command, **more)


# --- other readings of the stored files ------------------------------------------------------------------------------


def lines(encoding: str = "utf-8-sig") -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        text = path.read_bytes().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        return [line for line in text.split("\n") if line.strip()]

    return read


def json_texts(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    return [row["text"] for row in (rows[0] if isinstance(rows[0], list) else rows) if row.get("text")]


def csv_texts(path: Path) -> list[str]:
    return [row["text"] for row in csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""))]


# --- what is made ----------------------------------------------------------------------------------------------------

SENTENCE = "the quick brown fox jumps over the lazy dog"


def rows_into(path: Path, count: int = 50) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": f"{i} {SENTENCE}"}) + "\n" for i in range(count))


def a_file(name: str, content: bytes | str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content.encode() if isinstance(content, str) else content
        path.write_bytes(text.replace(b"CANARY", os.fsencode(place / "canary")))

    return make


def a_good_file(name: str) -> Callable[[Path], None]:
    return lambda place: rows_into(place / name)


def a_link(name: str, to: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(to)

    return make


def all_of(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for maker in makers:
            maker(place)

    return make


def one_long_line(name: str, before: bytes = b"", after: bytes = b"\n") -> Callable[[Path], None]:
    def make(place: Path) -> None:
        with (place / name).open("wb") as stream:
            stream.write(before)
            for _ in range(500):
                stream.write((SENTENCE.encode() + b" ") * 2273)  # 100 kB at a time, so that this process stays small
            stream.write(after)

    return make


def many_empty_lines(place: Path) -> None:
    with (place / "10M_empty_lines.txt").open("wb") as stream:
        for _ in range(10):
            stream.write(b"\n" * 1_000_000)


def many_shards(place: Path) -> None:
    for number in range(10_000):
        folder = place / "10k_shards" / f"{number // 1000}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.jsonl").write_text(json.dumps({"text": f"row {number}"}) + "\n")


def unreadable(place: Path) -> None:
    rows_into(place / "noread.jsonl")
    (place / "noread.jsonl").chmod(0)


def unwritable(place: Path) -> None:
    (place / "readonly_out").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)


def a_pipe(place: Path) -> None:
    os.mkfifo(place / "fifo.jsonl")


def model_config(**more: Any) -> str:
    return json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 300, **more})


EVIL = "open('CANARY', 'w').close()\nclass C: pass\n"


class Payload:
    """Unpickling it makes the canary."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def pickled_weights(place: Path) -> None:
    a_file("checkpoints/pickle_canary/config.json", model_config())(place)
    (place / "checkpoints/pickle_canary/pytorch_model.bin").write_bytes(pickle.dumps(Payload(place / "canary")))


REMOTE_CODE = all_of(
    a_file(
        "checkpoints/remote_code/config.json",
        model_config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}),
    ),
    a_file("checkpoints/remote_code/evil.py", EVIL),
)
TOKENIZER_CODE = all_of(
    a_file(
        "checkpoints/tokenizer_code/tokenizer_config.json",
        '{"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["evil.C", null]}}',
    ),
    a_file("checkpoints/tokenizer_code/evil.py", EVIL),
)

TWO_CHECKPOINTS = [*CLM, "--data", "{good}", "--save-every", "2", "--keep", "2", "-o", "{run}"]


def an_interrupted_run(place: Path) -> Path:
    """A run with two checkpoints that has not ended; the newer one is given back."""
    rows_into(place / "good.jsonl")
    done = start([*TWO_CHECKPOINTS, "--max-steps", "4"], place)
    assert done.code == 0, done.err
    (place / "run" / "results.json").unlink()
    return place / "run" / "checkpoints" / "checkpoint-4"


def a_cut_state(place: Path) -> None:
    path = an_interrupted_run(place) / "trainer_state.json"
    path.write_text(path.read_text()[:27])


def a_pickled_optimizer(place: Path) -> None:
    path = an_interrupted_run(place) / "optimizer.pt"
    path.write_bytes(pickle.dumps(Payload(place / "canary")))


FILLING = [
    *CLM,
    "--model-config",
    "n_embd=64,n_layer=10,n_head=1,n_positions=64",
    "--data",
    "{good}",
    "--save-every",
    "1",
    "--max-steps",
    "60",
    "-o",
    "{place}/disk/run",
]


def a_small_disk(place: Path) -> None:
    (place / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place / "disk")], check=False, capture_output=True
    )
    if mounted.returncode:
        raise CannotBeMade("no file system can be mounted here")
    rows_into(place / "good.jsonl")


def filling(place: Path, running: Callable[[], bool]) -> None:
    while running() and not list((place / "disk/run/checkpoints").glob("checkpoint-*")):
        time.sleep(0.002)
    with suppress(OSError), (place / "disk/filler").open("wb") as stream:
        while running():
            stream.write(bytes(1 << 16))


def goes_on_once_there_is_room(place: Path, outcome: Outcome) -> str:
    checkpoints = sorted(path.name for path in (place / "disk/run/checkpoints").glob("*"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(place / "disk")], check=True)
    resumed = start([*FILLING, "--resume", "auto"], place)
    if resumed.code or "resuming from" not in resumed.err:
        return f"of {checkpoints} nothing could be resumed: {resumed.message}"
    return ""


def appending(place: Path, running: Callable[[], bool]) -> None:
    with (place / "growing.jsonl").open("a", encoding="utf-8") as stream:
        while running():
            stream.write(json.dumps({"text": SENTENCE}) + "\n")
            stream.flush()


def not_endless(place: Path, outcome: Outcome) -> str:
    used = outcome.results.get("data", {}).get("train", {}).get("rows_read", 0)
    return "" if outcome.code or used >= 20_000 else f"{used} rows, there were 20,000 at the start"


def cutting(place: Path, running: Callable[[], bool]) -> None:
    while running() and not (place / "run" / "recipe.yaml").exists():
        time.sleep(0.02)
    os.truncate(place / "shrinking.jsonl", 100)


def deleting(place: Path, running: Callable[[], bool]) -> None:
    while running() and not (place / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
    (place / "deleted.jsonl").unlink()


def steps_taken(at_least: int, at_most: int) -> Callable[[Path, Outcome], str]:
    def check(place: Path, outcome: Outcome) -> str:
        steps = outcome.results.get("train", {}).get("steps", 0)
        return "" if outcome.code or at_least <= steps <= at_most else f"{steps} steps, not {at_least} to {at_most}"

    return check


def data_is_not_copied(place: Path, outcome: Outcome) -> str:
    lines = [line for line in Path("/etc/passwd").read_bytes().splitlines() if len(line) > 20]
    return _found_in(place / "run", lines)


def secrets_are_kept(place: Path, outcome: Outcome) -> str:
    told = [secret for secret in SECRETS if secret in outcome.out + outcome.err]
    return f"prints {told[0]}" if told else _found_in(place / "run", [secret.encode() for secret in SECRETS])


def _found_in(folder: Path, words: list[bytes]) -> str:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if any(word in content for word in words):
            return f"{path.relative_to(folder)} holds what it should not"
    return ""


# --- the table -------------------------------------------------------------------------------------------------------

LONGEST = "n" * 249 + ".jsonl"
NO_UTF8 = os.fsdecode(b"bad\xff.jsonl")
JSONL, CSV, GZ = "jsonl/", "csv/", "compressed/"

STORED = [
    refused("text/empty.txt", "0 bytes", "no usable text"),
    refused("text/whitespace.txt", "only spaces and newlines", "no usable text"),
    refused("text/binary.txt", "random bytes named .txt", "not", "text"),
    refused("text/png_named.txt", "PNG header named .txt", "not", "text"),
    refused("text/invalid_utf8_one_byte.txt", "one invalid byte on line 201", "line 201"),
    refused("text/latin1.txt", "ISO-8859-1 text", "--encoding", "latin-1"),
    loads(
        "text/latin1.txt",
        "… with --encoding latin-1",
        "loads",
        "--encoding",
        "latin-1",
        *BY_LINE,
        counts={"rows_used": 300},
        texts=lines("latin-1"),
    ),
    refused("text/euckr.txt", "EUC-KR text", "--encoding", "euc-kr"),
    loads(
        "text/euckr.txt",
        "… with --encoding euc-kr",
        "loads",
        "--encoding",
        "euc-kr",
        *BY_LINE,
        counts={"rows_used": 300},
        texts=lines("euc-kr"),
    ),
    loads(
        "text/utf8_bom.txt",
        "UTF-8 with BOM",
        "no U+FEFF in the first token",
        *BY_LINE,
        counts={"rows_used": 300},
        texts=lines(),
    ),
    loads(
        "text/utf16_bom.txt",
        "UTF-16 LE with BOM",
        "loads without NULs",
        *BY_LINE,
        counts={"rows_used": 300},
        texts=lines("utf-16"),
        same_as="text/utf8_bom.txt",
    ),
    loads(
        "text/crlf_twin_lf.txt", "LF twin of crlf.txt", "reference", *BY_LINE, counts={"rows_used": 600}, texts=lines()
    ),
    loads(
        "text/crlf.txt",
        "CRLF line ends",
        "the twin's tokens",
        *BY_LINE,
        texts=lines(),
        same_as="text/crlf_twin_lf.txt",
    ),
    loads(
        "text/cr_only.txt",
        "CR line ends",
        "the rows of LF",
        *BY_LINE,
        counts={"rows_used": 300},
        texts=lines(),
        same_as="text/utf8_bom.txt",
    ),
    loads(
        "text/no_final_newline.txt",
        "last line has no newline",
        "100 rows",
        *BY_LINE,
        counts={"rows_used": 100},
        texts=lines(),
    ),
    loads("text/u2028.txt", "Unicode line separators", "200 rows", *BY_LINE, counts={"rows_used": 200}, texts=lines()),
    loads(
        "text/nul.txt",
        "NUL characters inside",
        "loads whole, or refused",
        *BY_LINE,
        counts={"rows_used": 200},
        texts=lines(),
        codes=(0, 3),
        says=("nul.txt", "NUL"),
    ),
    loads(
        "text/emoji_rtl_zw.txt",
        "emoji, bidi override, NFC and NFD",
        "byte for byte; no bidi control in the log",
        *BY_LINE,
        "--samples",
        "3",
        "--val-split",
        "0.05",
        texts=None,
        counts={"rows_bad": 0},
    ),
    loads(
        "text/emoji_rtl_zw.txt", "… every byte", "byte for byte", *BY_LINE, texts=lines(), counts={"rows_used": 200}
    ),
    refused("text/lone_surrogate.jsonl", "JSON escape of a lone surrogate", "line 1"),
    loads(
        "text/ansi_escape.txt",
        "terminal escape sequences",
        "no echo of them",
        *BY_LINE,
        "--samples",
        "3",
        "--val-split",
        "0.05",
    ),
    loads(
        "text/one_char_lines.txt",
        "10,000 rows of one character",
        "packed: far fewer steps than rows",
        "--max-steps",
        "1000",
        "--epochs",
        "1",
        "--packing",
        counts={"rows_used": 10_000},
        after=steps_taken(100, 1000),
    ),
    loads(
        "text/single_word_repeat.txt",
        "one line of 200 kB",
        "loads; the loss falls towards 0",
        "--max-steps",
        "150",
        "--lr",
        "0.02",
        "--assert",
        "train.last_loss<0.7",
        counts={"rows_used": 1},
    ),
    refused(
        "text/shorter_than_block.txt",
        "one row shorter than a block",
        "too little to hold a part out",
        flags=["-L", "64", "--val-split", "0.05"],
    ),
    loads(
        "text/shorter_than_block.txt",
        "… nothing held out",
        "refused, or really trained",
        "-L",
        "64",
        codes=(0, 3),
        counts={"rows_used": 1, "tokens_used": 23},
        after=steps_taken(1, 1),
    ),
    refused(JSONL + "broken_middle.jsonl", "line 201 cut", "line 201"),
    refused(JSONL + "missing_column.jsonl", "no column text", "body"),
    refused(JSONL + "missing_in_some.jsonl", "58 of 400 rows lack text", "line 1", "column 'text'"),
    loads(
        JSONL + "missing_in_some.jsonl",
        "… --on-bad drop",
        "58 counted",
        "--on-bad",
        "drop",
        counts={"rows_bad": 58, "rows_used": 342},
        texts=json_texts,
    ),
    refused(JSONL + "nulls.jsonl", "80 of 400 rows null", "line 1", "column 'text'", "null"),
    loads(
        JSONL + "nulls.jsonl",
        "… --on-bad drop",
        "80 counted, no 'None'",
        "--on-bad",
        "drop",
        counts={"rows_bad": 80, "rows_used": 320},
        texts=json_texts,
    ),
    refused(JSONL + "nested.jsonl", "text in doc.body.text", "doc", "--text-column"),
    loads(
        JSONL + "nested.jsonl",
        "… --text-column doc.body.text",
        "400 rows",
        "--text-column",
        "doc.body.text",
        counts={"rows_used": 400},
    ),
    refused(JSONL + "wrong_type_int.jsonl", "text is an integer", "line 1", "column 'text'", "int"),
    refused(JSONL + "mixed_types.jsonl", "row 301 is a list", "line 301", "list"),
    loads(
        JSONL + "duplicate_keys.jsonl",
        "the same key twice",
        "refused, or documented",
        codes=(3,),
        says=("duplicate_keys.jsonl, line 1", "text"),
    ),
    loads(
        JSONL + "json_array.jsonl", "one array in a .jsonl", "400 rows", counts={"rows_used": 400}, texts=json_texts
    ),
    loads(
        JSONL + "json_array.json",
        "array over many lines",
        "400 rows",
        counts={"rows_used": 400},
        same_as=JSONL + "json_array.jsonl",
    ),
    loads(JSONL + "concatenated.json", "objects one after another", "50 rows", counts={"rows_used": 50}),
    loads(
        JSONL + "blank_lines.jsonl",
        "blank lines between rows",
        "400 rows",
        counts={"rows_used": 400},
        texts=json_texts,
        same_as=JSONL + "json_array.jsonl",
    ),
    loads(
        JSONL + "bigint.jsonl",
        "an integer of 60 digits",
        "loads, or refused",
        codes=(0, 3),
        says=("line 1",),
        counts={"rows_used": 1},
        texts=json_texts,
    ),
    refused(JSONL + "zero_rows_header_only.csv", "header only", "no usable text"),
    refused(JSONL + "empty_strings.jsonl", "all rows empty", "no usable text", "400 empty"),
    loads(
        JSONL + "half_empty.jsonl",
        "200 of 400 empty",
        "200 used, 200 counted",
        counts={"rows_used": 200, "rows_empty": 200},
        texts=json_texts,
    ),
    loads(
        JSONL + "tiny_10k.jsonl",
        "10,000 rows of one character",
        "loads fast",
        counts={"rows_used": 10_000},
        texts=json_texts,
        seconds=20,
    ),
    refused(CSV + "duplicate_columns.csv", "two columns named text", "duplicate column 'text'"),
    loads(
        CSV + "embedded_newlines.csv",
        "quoted newlines, quotes, commas",
        "200 rows",
        counts={"rows_used": 200},
        texts=csv_texts,
    ),
    refused(CSV + "ragged.csv", "rows with wrong numbers of cells", "line 102"),
    loads(
        CSV + "semicolon.csv",
        "separated by semicolons",
        "200 rows, and the separator is said",
        counts={"rows_used": 200},
        notes=("semicolon.csv: its cells are separated by semicolons",),
    ),
    loads(
        CSV + "excel_utf16.csv",
        "Excel's Unicode text",
        "loads, or refused",
        codes=(0, 3),
        says=("excel_utf16.csv", "tab"),
    ),
    refused(CSV + "no_header.csv", "no header", "To be or not to be"),
    refused(CSV + "header_spaces.csv", "spaces in the header", "' text '"),
    Row(
        "seq2seq/length_mismatch/train",
        "300 source lines, 299 target lines",
        "refused: 300 vs 299",
        [*SEQ2SEQ, "--data", "{file}", "--source-lang", "en", "--target-lang", "de"],
        (3,),
        ("train.en", "train.de", "300 vs 299"),
    ),
    loads(
        "seq2seq/empty_target.jsonl",
        "30 of 300 targets empty",
        "30 counted",
        base=SEQ2SEQ,
        counts={"rows_empty": 30, "rows_used": 270},
    ),
    loads(
        "seq2seq/same_columns.jsonl", "source equals target", "a warning", base=SEQ2SEQ, notes=("source and target",)
    ),
    loads(
        "seq2seq/very_long_source.jsonl",
        "one source of 1 MB",
        "cut and counted",
        base=SEQ2SEQ,
        counts={"rows_truncated": 1},
    ),
    refused("chat/unknown_role.jsonl", "unknown role", "line 1", "wizard"),
    refused("chat/no_assistant.jsonl", "no assistant turn", "line 1", "no assistant turn"),
    refused("chat/content_none.jsonl", "content null", "line 1", "null"),
    *(
        loads(f"{GZ}good.jsonl.{end}", end, "400 rows", counts={"rows_used": 400}, same_as=JSONL + "json_array.jsonl")
        for end in ("gz", "bz2", "xz", "zst")
    ),
    refused(GZ + "truncated.jsonl.gz", "gzip cut in the middle", "damaged"),
    refused(GZ + "not_gzip.jsonl.gz", "plain text named .gz", "not what its name says"),
    loads(GZ + "bomb_100MB.txt.gz", "100 kB that expand to 100 MB", "less than 1 GB", megabytes=1000, codes=(0, 3)),
    loads(GZ + "bomb_100MB.txt.gz", "… --streaming", "less than 2 GB", "--streaming"),
    loads("parquet/good.parquet", "1000 rows, 10 row groups", "1000 rows", counts={"rows_used": 1000}),
    refused("parquet/truncated.parquet", "no footer", "damaged"),
    refused("parquet/magic_only.parquet", "8 bytes", "damaged"),
    loads(
        "parquet/binary_column.parquet",
        "text is binary",
        "refused, or decoded",
        codes=(0, 3),
        says=("binary_column.parquet", "row 1", "bytes"),
    ),
    refused("parquet/zero_rows.parquet", "0 rows", "no usable text"),
    loads(
        "names/path with spaces/데이터 файл 📄.jsonl",
        "spaces, Hangul, Cyrillic, emoji in the path",
        "400 rows",
        counts={"rows_used": 400},
    ),
    loads("names/brackets[0-9]*.jsonl", "glob characters in a real name", "400 rows", counts={"rows_used": 400}),
    recipe("config/norway.yaml", "traps of YAML 1.1", "lang", "version", silent=("lr:",)),
    recipe("config/dup_keys.yaml", "duplicate key", "lr", "line 3"),
    recipe("config/typo.yaml", "misspelt key", "did you mean 'learning_rate'"),
    recipe("config/tabs.yaml", "tab indentation", "line 3"),
    recipe("config/negative.yaml", "numbers out of range", "learning_rate", "batch_size", "max_steps", "max_length"),
    recipe("config/huge.yaml", "absurd sizes", "max_length", megabytes=300),
    checkpoint("checkpoints/trunc_safetensors", "weights cut in half", "model.safetensors", "cut off"),
    checkpoint("checkpoints/zero_len_weights", "0 bytes of weights", "model.safetensors", "cut off"),
    checkpoint("checkpoints/missing_weights", "config and tokenizer only", "no weights"),
    checkpoint("checkpoints/missing_layer", "layer 2 absent", "weights are missing", "layers.2"),
    checkpoint("checkpoints/nan_weights", "NaN in the final norm", "norm", "NaN", codes=(3, 6)),
    checkpoint("checkpoints/vocab_mismatch", "vocabulary of 600, weights of 512", "another shape", "embed_tokens"),
    checkpoint("checkpoints/untied_head_missing", "untied, but no lm_head", "lm_head.weight"),
    refused(
        "checkpoints/trainer_state_broken",
        "trainer_state.json cut, named",
        "not a complete checkpoint",
        command=[*CLM, "--data", "{good}", "--resume", "{file}"],
    ),
]

MADE = [
    Row(
        "resume/run",
        "… --resume auto with a cut trainer_state.json",
        "goes on from the checkpoint before",
        [*TWO_CHECKPOINTS, "--max-steps", "6", "--resume", "auto"],
        make=a_cut_state,
        notes=("skipping checkpoint-4", "checkpoint-2"),
        after=steps_taken(6, 6),
    ),
    refused(
        "links/loop_a",
        "link that leads to itself",
        make=all_of(a_link("links/loop_a", "loop_b"), a_link("links/loop_b", "loop_a")),
    ),
    loads(
        "links/dirloop",
        "folder that links to itself",
        "no endless walk",
        counts={"rows_used": 50},
        make=all_of(a_good_file("links/dirloop/a.jsonl"), a_link("links/dirloop/again", ".")),
    ),
    refused("links/dangling.jsonl", "link to nothing", make=a_link("links/dangling.jsonl", "gone.jsonl")),
    loads(
        "links/outside.txt",
        "link to /etc/passwd, named itself",
        "read, but copied nowhere",
        make=a_link("links/outside.txt", "/etc/passwd"),
        after=data_is_not_copied,
    ),
    loads(
        "links/folder",
        "… in a folder that is named",
        "not read",
        codes=(0, 3),
        says=("outside.txt",),
        counts={"rows_read": 50},
        make=all_of(a_good_file("links/folder/a.jsonl"), a_link("links/folder/outside.txt", "/etc/passwd")),
    ),
    recipe(
        "config/yaml_exec.yaml",
        "YAML tag that runs a command",
        "line",
        make=a_file("config/yaml_exec.yaml", 'task: clm\nx: !!python/object/apply:os.system ["touch CANARY"]\n'),
    ),
    Row(
        "config/norway_known.yaml",
        "traps of YAML 1.1 under known keys",
        "1e-4 a number, no a word, 010 ten",
        ["run", "{file}", "--dry-run"],
        prints=("learning_rate: 0.0001", "source_prefix: no\n", "seed: 10\n"),
        make=a_file(
            "config/norway_known.yaml", "task: seq2seq\nmodel: t5\ndata: x\nlr: 1e-4\nsource_prefix: no\nseed: 010\n"
        ),
    ),
    recipe(
        "config/secret_key.yaml",
        "secrets under unknown keys",
        "hub_api_key",
        after=secrets_are_kept,
        make=a_file("config/secret_key.yaml", f"task: clm\nhub_api_key: {SECRETS[0]}\nopenai: {SECRETS[1]}\n"),
    ),
    Row(
        "config/secret_in_config.yaml",
        "secret under a known key",
        "nowhere in log, recipe.yaml, card",
        ["run", "{file}", *CLM[1:], "--data", "{good}", "-o", "{run}"],
        (0, 2),
        ("hub_token",),
        after=secrets_are_kept,
        make=a_file("config/secret_in_config.yaml", f"task: clm\ntrain:\n  hub_token: {SECRETS[0]}\n"),
    ),
    checkpoint("checkpoints/remote_code", "auto_map to evil.py", "--trust-remote-code", make=REMOTE_CODE),
    checkpoint("checkpoints/pickle_canary", "weights whose unpickling runs code", "pickle", make=pickled_weights),
    refused(
        "checkpoints/tokenizer_code",
        "tokenizer with code of its own",
        make=TOKENIZER_CODE,
        command=["clm", "--from-scratch", "--model", "gpt2", "--tokenizer", "{file}", "--data", "{good}"],
    ),
    Row(
        "resume/pickled",
        "optimizer.pt whose unpickling runs code",
        "refused, or passed over",
        [*TWO_CHECKPOINTS, "--max-steps", "6", "--resume", "auto"],
        (0, 3),
        ("checkpoint-4",),
        make=a_pickled_optimizer,
        leaves_run=True,
    ),
    refused("noread.jsonl", "no permission to read", "ermission denied", make=unreadable, unprivileged=True),
    Row(
        "readonly_out",
        "output folder not writable",
        "refused before training",
        [*CLM, "--data", "{good}", "-o", "{file}"],
        (3, 7),
        ("readonly_out", "permission"),
        make=unwritable,
        unprivileged=True,
        seconds=10,
    ),
    Row(
        "tmpfs of 40 MB that another program fills",
        "disk full during a save",
        "exit 7, and the checkpoint before can be resumed",
        FILLING,
        (7,),
        ("space",),
        make=a_small_disk,
        during=filling,
        after=goes_on_once_there_is_room,
        leaves_run=True,
    ),
    refused("fifo.jsonl", "named pipe", "not a regular file", make=a_pipe, seconds=5),
    *(
        Row(
            device,
            "device file",
            "refused, no endless read",
            [*CLM, "--data", device],
            (3,),
            (device, "not a regular file"),
            seconds=5,
        )
        for device in ("/dev/zero", "/dev/null")
    ),
    refused(
        "folder.jsonl",
        "folder given as a file",
        "no data in this folder",
        make=lambda place: (place / "folder.jsonl").mkdir(),
    ),
    refused("good.jsonl/inner", "file given as a folder", make=a_good_file("good.jsonl")),
    Row(
        "out.txt",
        "file given as output folder",
        "refused",
        [*CLM, "--data", "{good}", "-o", "{file}"],
        (2, 3),
        ("out.txt", "a file"),
        make=a_file("out.txt", "x"),
        leaves_run=True,
    ),
    checkpoint("config.json", "file given as a model", "a file", make=a_file("config.json", model_config())),
    loads(
        "new\nline.jsonl",
        "newline in the name",
        "loads",
        counts={"rows_used": 50},
        make=a_good_file("new\nline.jsonl"),
        codes=(0, 3),
        says=("line.jsonl",),
    ),
    loads(
        NO_UTF8,
        "name that is not UTF-8",
        "loads, or refused",
        counts={"rows_used": 50},
        make=a_good_file(NO_UTF8),
        codes=(0, 3),
        says=("bad",),
    ),
    loads(LONGEST, "name of 255 bytes", "loads", counts={"rows_used": 50}, make=a_good_file(LONGEST)),
    refused("n" * 300 + ".jsonl", "name of 306 bytes", "name", unnamed=True, codes=(3,), make=lambda place: None),
    Row(
        "n" * 301,
        "… as a model",
        "refused",
        ["clm", "--model", "{file}", "--data", "{good}"],
        (3,),
        ("nnn",),
        make=lambda place: None,
    ),
    Row(
        "n" * 302,
        "… as output folder",
        "refused",
        [*CLM, "--data", "{good}", "-o", "{file}"],
        (2, 3, 7),
        ("nnn",),
        make=lambda place: None,
    ),
    Row("n" * 303, "… as a recipe", "refused", ["run", "{file}"], (2, 3), ("nnn",), make=lambda place: None),
    refused(
        "red\x1b[31m.jsonl",
        "escape sequence in the name of a broken file",
        "line 1",
        unnamed=True,
        make=a_file("red\x1b[31m.jsonl", '{"text": 1}\n'),
    ),
    refused(
        "columns.jsonl",
        "escape sequences in columns and values",
        "which column",
        unnamed=True,
        make=a_file("columns.jsonl", '{"\\u001b[31mred": 1, "\\u202eb": 2}\n'),
    ),
    loads(
        "growing.jsonl",
        "appended to all the time",
        "the rows at the start, or refused",
        codes=(0, 3),
        says=("growing.jsonl",),
        make=lambda place: rows_into(place / "growing.jsonl", 20_000),
        during=appending,
        after=not_endless,
    ),
    loads(
        "deleted.jsonl",
        "deleted while training",
        "goes on, or refused",
        "--max-steps",
        "300",
        "--log-every",
        "1",
        codes=(0, 3),
        make=a_good_file("deleted.jsonl"),
        during=deleting,
        after=steps_taken(300, 300),
    ),
    loads(
        "shrinking.jsonl",
        "cut off while training",
        "goes on, or refused",
        "--max-steps",
        "300",
        "--log-every",
        "1",
        codes=(0, 3),
        make=a_good_file("shrinking.jsonl"),
        during=cutting,
        after=steps_taken(300, 300),
    ),
    loads(
        "10k_shards",
        "10,000 files of one row, 256 open files at most",
        "10,000 rows",
        make=many_shards,
        counts={"rows_used": 10_000},
        open_files=256,
    ),
    refused("10M_empty_lines.txt", "10 million newlines", "no usable text", make=many_empty_lines, seconds=30),
    refused("10M_empty_lines.txt", "… as rows", "no usable text", flags=BY_LINE, make=many_empty_lines, seconds=30),
    loads(
        "one_50MB_line.txt",
        "one line of 50 MB",
        "less than 2 GB",
        counts={"rows_used": 1},
        make=one_long_line("one_50MB_line.txt"),
    ),
    loads(
        "one_50MB_line.jsonl",
        "one JSON row of 50 MB",
        "less than 2 GB",
        counts={"rows_used": 1},
        make=one_long_line("one_50MB_line.jsonl", b'{"text": "', b'"}\n'),
    ),
    refused(
        "10M_empty_lines.txt",
        "… --streaming",
        "no usable text",
        flags=["--streaming"],
        make=many_empty_lines,
        seconds=30,
    ),
    loads(
        "one_50MB_line.txt", "… --streaming", "less than 2 GB", "--streaming", make=one_long_line("one_50MB_line.txt")
    ),
    loads(
        "one_50MB_line.jsonl",
        "… --streaming",
        "less than 2 GB",
        "--streaming",
        make=one_long_line("one_50MB_line.jsonl", b'{"text": "', b'"}\n'),
    ),
]

ROWS = [*STORED, *MADE]


# --- running ---------------------------------------------------------------------------------------------------------


def start(command: Sequence[str], place: Path, file: Path | None = None, row: Row | None = None) -> Outcome:
    """Run `lmtrain` to its end; the peak is that of the process and of what it has started."""
    filled = {
        "{file}": str(file),
        "{place}": str(place),
        "{run}": str(place / "run"),
        "{good}": str(place / "good.jsonl"),
    }
    words = []
    for word in command:
        for name, value in filled.items():
            word = word.replace(name, value)
        words.append(word)
    if "-o" not in words and words[0] != "run":
        words += ["-o", str(place / "run")]
    before = WITHOUT_PRIVILEGE if row and row.unprivileged and os.geteuid() == 0 else []
    limit = row.open_files if row else None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LMTRAIN_")} | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_TOKEN": SECRETS[0],
        "PYTHONPATH": str(Path.cwd()),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "lmtrain", *words, *([] if "--dry-run" in words else ["--json"])],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=place,
            preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))),
        )
        ended: list[Any] = []

        def running() -> bool:
            if not ended:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    ended.append(usage)
                elif time.monotonic() - began > PATIENCE:
                    process.kill()
            return not ended

        if row and row.during:
            row.during(place, running)
        while running():
            time.sleep(0.02)
        seconds = time.monotonic() - began
    texts = [(place / name).read_bytes().decode("utf-8", "backslashreplace") for name in ("out", "err")]
    return Outcome(process.returncode, *texts, seconds, ended[0].ru_maxrss // 1024)


def try_row(row: Row, folder: Path, place: Path, fingerprints: dict[str, str]) -> tuple[Outcome, list[str]]:
    """(what became of the row, everything that is not as it must be)."""
    rows_into(place / "good.jsonl")
    if row.make:
        row.make(place)
    file = (place if row.make else folder) / row.name
    outcome = start(row.command, place, file, row)
    problems = list(_problems(row, outcome, file, place, fingerprints))
    if row.after and (problem := row.after(place, outcome)):
        problems.append(problem)
    return outcome, problems


def _problems(row: Row, outcome: Outcome, file: Path, place: Path, fingerprints: dict[str, str]) -> Iterator[str]:
    if outcome.code not in row.codes:
        yield f"exit {outcome.code}, not {' or '.join(map(str, row.codes))}"
    if "Traceback" in outcome.err:
        yield "traceback"
    if strange := {c for c in outcome.out + outcome.err if not c.isprintable() and c not in "\n\t"}:
        yield f"control characters {sorted(strange)!a}"
    if (place / "canary").exists():
        yield "the canary: code was run"
    if outcome.code and not row.leaves_run and any((place / name).exists() for name in ("run", "runs")):
        yield "a run folder is left"
    if outcome.seconds > row.seconds:
        yield f"{outcome.seconds:.0f} s, at most {row.seconds:.0f}"
    if outcome.megabytes > row.megabytes:
        yield f"{outcome.megabytes:,} MB, at most {row.megabytes:,}"
    yield from (f"{word!r} is on stderr" for word in row.silent if word in outcome.err)
    if outcome.code:
        yield from (f"the message lacks {word!r}" for word in row.says if word not in outcome.message)
    else:
        yield from (f"the log lacks {word!r}" for word in row.notes if word not in outcome.err)
        yield from (f"the result lacks {word!r}" for word in row.prints if word not in outcome.out)
        yield from _miscounts(row, outcome, file, fingerprints)


def _miscounts(row: Row, outcome: Outcome, file: Path, fingerprints: dict[str, str]) -> Iterator[str]:
    if not outcome.results:
        return
    ledger = outcome.results["data"]["train"]
    fingerprints.setdefault(row.name, ledger["fingerprint"])
    yield from (
        f"{name} is {ledger[name]}, not {count}" for name, count in row.counts.items() if ledger[name] != count
    )
    if row.texts:
        tokens = sum(len(text.encode()) + 2 for text in row.texts(file))
        if ledger["tokens_read"] != tokens:
            yield f"tokens_read is {ledger['tokens_read']}, the file has {tokens}"
    if row.same_as and fingerprints.get(row.same_as, ledger["fingerprint"]) != ledger["fingerprint"]:
        yield f"not the data of {row.same_as}"


# --- the report ------------------------------------------------------------------------------------------------------


def shown(row: Row, outcome: Outcome, hidden: Sequence[Path]) -> str:
    """The message of a refusal or the counts of a run, without the folders of this machine."""
    text = outcome.message
    if outcome.code == 0:
        ledger = outcome.results.get("data", {}).get("train", {})
        text = ", ".join(
            f"{name} {count:,}" for name, count in ledger.items() if count and not isinstance(count, float | str)
        )
    for path in hidden:
        text = text.replace(f"{path}/", "").replace(str(path), "")
    return cell(text.removeprefix("lmtrain: "), 300)


def cell(text: str, limit: int = 90) -> str:
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    printable = printable.encode("utf-8", "backslashreplace").decode()
    return (printable if len(printable) <= limit else printable[: limit - 1] + "…").replace("|", "\\|")


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB; python {platform.python_version()}, {libraries}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="rows whose name or description holds this word; writes no report")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    rows = [row for row in ROWS if not arguments.only or arguments.only in f"{row.name} {row.what}"]
    table, fingerprints, bad, began = [], {}, 0, time.monotonic()
    for number, row in enumerate(rows, 1):
        place = Path(tempfile.mkdtemp(prefix="hostile-"))
        try:
            outcome, problems = try_row(row, folder, place, fingerprints)
            verdict = "ok" if not problems else f"NOT: {cell('; '.join(problems), 200)}"
            bad += bool(problems)
            columns = [
                str(outcome.code),
                f"{outcome.seconds:.1f}",
                str(outcome.megabytes),
                shown(row, outcome, (place, folder)),
            ]
        except CannotBeMade as reason:
            verdict, columns = f"not run: {reason}", ["", "", "", ""]
        finally:
            if (place / "disk").is_mount():
                subprocess.run(["umount", str(place / "disk")], check=False)
            shutil.rmtree(place, ignore_errors=True)
        table.append([cell(row.name, 60), cell(row.what), cell(row.must), *columns, verdict])
        print(f"{number}/{len(rows)} {table[-1][0]}: {' · '.join(table[-1][3:])}", file=sys.stderr, flush=True)
    head = ["input", "what it is", "must", "exit", "s", "MB", "message or counts", "result"]
    text = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *table])
    report = f"""# Hostile inputs, as measured

Machine: {machine()}. `python tests/stress/hostile.py FOLDER` made this table: every row is one `lmtrain` process with a
tiny model (its library imports alone take most of the seconds and of the MB, the peak of its resident memory).
{len(rows)} rows in {(time.monotonic() - began) / 60:.0f} minutes, {bad} not as they must be.

{text}
"""
    if not arguments.only:
        (Path(__file__).parents[2] / "benchmarks" / "hostile.md").write_text(report, encoding="utf-8")
    print(report)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
