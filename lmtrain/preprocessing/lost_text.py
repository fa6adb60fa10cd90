"""What is lost between text and ids: tokens that the tokenizer does not know, and characters that do not come back.

The tokens are counted over all of the data (count_unknown). What is lost of the text is measured on a sample:
decode(encode(text)) is compared with the text, after the normalisation that the tokenizer declares.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from lmtrain.data.chats import Chat
from lmtrain.data.labels import LABELLED, plain_text
from lmtrain.data.rows import Rows
from lmtrain.errors import visible
from lmtrain.preprocessing.dataset import Examples
from lmtrain.preprocessing.text_pieces import backend
from lmtrain.preprocessing.vocabulary import unknown_id

TEXTS, CHARACTERS = 500, 200_000
"""The size of the sample."""

MATTERS = 0.001
"""Share of the tokens or characters from which a loss is reported."""

GONE, FEW = 0.9, 10
"""A script is named from this share of its letters lost, if the sample has at least so many of them."""

REMEDY = (
    "use a tokenizer that knows them (one of bytes, or with byte fallback); a model from scratch can have "
    "--tokenizer bpe:8000 or byte"
)

READ = ("input_ids", "labels")
"""The columns of tokens that the model reads or writes."""

Span = tuple[int, int]


@dataclass
class Loss:
    """What a sample of texts loses."""

    characters: int = 0
    lost: int = 0
    marks: int = 0
    """How often the unknown token itself is written in the text, as in WikiText."""
    examples: Counter[str] = field(default_factory=Counter)
    """Parts of the text without a token of their own."""
    letters: Counter[str] = field(default_factory=Counter)
    lost_letters: Counter[str] = field(default_factory=Counter)
    """Script -> letters."""

    @property
    def share(self) -> float:
        return self.lost / max(self.characters, 1)

    @property
    def scripts(self) -> list[str]:
        """The scripts of which next to nothing is left."""
        letters = self.letters.items()
        return [script for script, n in letters if n >= FEW and self.lost_letters[script] / n >= GONE]


def warnings(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, examples: Examples, where: str, written: bool
) -> list[str]:
    """What to report about the rows of `where` and the ids that became of them.

    `written`: the model learns to write these texts, so that it matters if it cannot write a line break.
    """
    loss = measure(tokenizer, sample(rows))
    found = [_on_unknown(tokenizer, examples, loss, where) or _on_lost(loss, where)]
    if written:
        found.append(_on_line_breaks(tokenizer, sample(rows, learnt=True), where))
    return [warning for warning in found if warning]


def on_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: str) -> list[str]:
    """The warning, if any, on what texts for a trained model lose."""
    warning = _on_lost(
        measure(tokenizer, texts[:TEXTS]), where, "write them otherwise, or ask a model that knows them"
    )
    return [warning] if warning else []


def sample(rows: Rows, learnt: bool = False) -> list[str]:
    """Beginnings of texts from all over the rows; with `learnt`, of a pair or a prompt only what is learnt of it."""
    step = max(len(rows.values) // TEXTS, 1)
    values = [rows.values[index] for index in range(0, len(rows.values), step)]
    if rows.kind == "text":
        texts = values
    elif rows.kind in LABELLED:
        texts = [plain_text(value[0]) for value in values]
    elif learnt and rows.kind in ("pairs", "prompt"):
        texts = [value[1] for value in values]
    else:
        texts = [text for value in values for text in (value.texts() if isinstance(value, Chat) else value)]
    most = max(CHARACTERS // max(len(texts), 1), 100)
    return [text[:most] for text in texts]


def count_unknown(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set `tokens_unknown` in the ledgers of the examples."""
    unknown = unknown_id(tokenizer)
    if unknown is None:
        return
    counts = np.zeros(len(examples.ledgers), np.int64)
    repeats = examples.columns["trained"].values if examples.kind == "text" and "trained" in examples.columns else None
    for column in (examples.columns[name] for name in _read(examples)):
        # Windows with a stride show a token several times; it is trained once.
        found = column.values == unknown if repeats is None else (column.values == unknown) & repeats
        at = np.flatnonzero(found[: column.offsets[-1]])
        rows = np.searchsorted(column.offsets, at, "right") - 1
        counts += np.bincount(examples.source_of_texts()[rows], minlength=len(counts))
    for ledger, count in zip(examples.ledgers, counts, strict=True):
        ledger.tokens_unknown = int(count)


def _read(examples: Examples) -> list[str]:
    """The columns of tokens that the model reads or writes; the label of a text or of a word is no token."""
    read = READ[:1] if examples.kind in LABELLED else READ
    return [name for name in read if name in examples.columns]


def measure(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Loss:
    """What the texts lose on the way to ids and back."""
    loss, unknown = Loss(), unknown_id(tokenizer)
    mark = tokenizer.unk_token if unknown is not None else None
    for text, ids, spans, back in _there_and_back(tokenizer, texts, unknown):
        whole = _characters(_normalised(tokenizer, text.replace(mark, " ") if mark else text))
        lost = whole - _characters(back)
        loss.characters += whole.total()
        loss.lost += lost.total()
        loss.marks += text.count(mark) if mark else 0
        _count_scripts(loss.letters, whole)
        _count_scripts(loss.lost_letters, lost)
        if lost:
            pieces = [text[slice(*span)].strip() for index, span in zip(ids, spans, strict=False) if index == unknown]
            loss.examples.update([piece for piece in pieces if piece and piece != mark] or lost)
    return loss


def _there_and_back(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], unknown: int | None
) -> Iterator[tuple[str, list[int], list[Span], str]]:
    """Each text with its ids, their places in the text (of fast tokenizers), and the text that the known ids give."""
    if not tokenizer.is_fast:
        encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            back = tokenizer.decode([index for index in ids if index != unknown], skip_special_tokens=False)
            yield text, ids, [], str(back)
        return
    rust = backend(tokenizer)
    encoded = rust.encode_batch(list(texts), add_special_tokens=False)
    known = [[index for index in found.ids if index != unknown] for found in encoded]
    for text, found, back in zip(texts, encoded, rust.decode_batch(known, skip_special_tokens=False), strict=True):
        yield text, found.ids, found.offsets, back


# --- messages --------------------------------------------------------------------------------------------------------


def _on_unknown(tokenizer: PreTrainedTokenizerBase, examples: Examples, loss: Loss, where: str) -> str | None:
    columns = [examples.columns[name] for name in _read(examples)]
    count, total = examples.ledger.tokens_unknown, sum(int(column.lengths.sum()) for column in columns)
    labels = examples.columns.get("labels") if "labels" in _read(examples) else None
    learnt = 0 if labels is None else int(np.count_nonzero(labels.values == unknown_id(tokenizer)))
    only_marks = loss.marks and not loss.lost
    if not count or only_marks or not (learnt or loss.scripts or count / total >= MATTERS):
        return None
    token = tokenizer.unk_token
    targets = f"; {learnt:,} of them are in targets, so the model learns to write {token}" if learnt else ""
    return (
        f"{where}: {count:,} of {total:,} tokens ({_percent(count / total)}) are unknown to the tokenizer and become "
        f"{token}{_such_as(loss)}{targets}{_scripts(loss)}; {REMEDY}"
    )


def _on_lost(loss: Loss, where: str, remedy: str = REMEDY) -> str | None:
    if loss.share < MATTERS and not loss.scripts:
        return None
    return f"{where}: the tokenizer loses {_percent(loss.share)} of the characters{_such_as(loss)}{_scripts(loss)}; {remedy}"


def _on_line_breaks(tokenizer: PreTrainedTokenizerBase, texts: list[str], where: str) -> str | None:
    broken = [text for text in texts if "\n" in text.strip()]
    lost = sum("\n" not in back for *_, back in _there_and_back(tokenizer, broken, None))
    if not lost:
        return None
    return (
        f"{where}: {lost:,} of {len(texts):,} texts to learn lose their line breaks, which the tokenizer does not have, "
        "so the model cannot learn to write them; put another mark in their place, or use a tokenizer that has one"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{share:.0%}"


def _such_as(loss: Loss) -> str:
    shown = ", ".join(repr(visible(piece, 20)) for piece, _ in loss.examples.most_common(4))
    return f", such as {shown}" if shown else ""


def _scripts(loss: Loss) -> str:
    if not loss.scripts:
        return ""
    lost = (f"{loss.lost_letters[script] / loss.letters[script]:.0%} of the {script}" for script in loss.scripts)
    return f"; {' and '.join(lost)} text is lost".replace("100% of", "all of")


# --- characters ------------------------------------------------------------------------------------------------------


def _normalised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text as the tokenizer declares to change it: lower case, accents, NFKC."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _characters(text: str) -> Counter[str]:
    """How often each character occurs, without case and without white space and invisible characters."""
    counts = Counter(unicodedata.normalize("NFKC", text).casefold())
    return Counter(
        {c: n for c, n in counts.items() if not c.isspace() and c != "▁" and unicodedata.category(c) not in INVISIBLE}
    )


INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs")
"""Categories of Unicode: control and format characters, and what is no character."""


def _count_scripts(counts: Counter[str], characters: Counter[str]) -> None:
    for character, n in characters.items():
        if character.isalpha():
            counts[_script(character)] += n


def _script(character: str) -> str:
    """The script of a letter, by the first word of its name in Unicode."""
    word = unicodedata.name(character, "other").split(" ")[0].split("-")[0]
    return {"CJK": "Chinese", "HANGUL": "Korean"}.get(word, word.capitalize())
