"""Tokens drawn in colour or, where there is none, between marks. Control characters in a text never reach the terminal."""

import re
from itertools import pairwise
from textwrap import wrap

import numpy as np
from rich.cells import cell_len
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lmtrain.errors import visible
from lmtrain.objectives.token_roles import BLUE, Look, Token, View

BREAK = "┃"
SIGNS = {
    "·": "boundary of two tokens inside a word; a space is a boundary too",
    BREAK: "start of another text; texts do not attend to each other",
    "↵": "line break",
    "⇥": "tab",
    "␣": "space that is a token of its own, or inside a token",
}
"""Sign -> meaning, for the legend."""

ESCAPES = {
    "<9C=한>": (
        r"<[0-9A-F]{2}( [0-9A-F]{2})*[=>]",
        "bytes of a character that several tokens share; after = the character",
    ),
    "\\u200b": (r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", "invisible character, escaped"),
}
"""Example of an escape -> (pattern of all its forms, meaning), for the legend."""

BYTE_RUNS = re.compile(r"([\udc80-\udcff]+)")
"""Bytes of an incomplete UTF-8 character, as surrogateescape decodes them."""

LINES = 6
"""Lines of a long row that a terminal shows."""

BARS, BAR = 8, 40
"""Of a histogram: the most bars, and the cells of the longest bar."""


class TokenTexts:
    """Token id -> its text, leading space included; bytes of an incomplete character are surrogates (BYTE_RUNS)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.special = tokenizer, set(tokenizer.all_special_ids)
        # Many decoders strip the space of the first token, so each token is decoded after another one.
        self.before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self.known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = self._read(token) if token >= 0 else ""
        return self.known[token]

    def _read(self, token: int) -> str:
        entry = str(self.tokenizer.convert_ids_to_tokens(token))
        if token in self.special:
            return entry
        before, text = (self._decode(ids) for ids in (self.before, [*self.before, token]))
        text = text.removeprefix(before) if text.startswith(before) else self._decode([token])
        raw = _bytes(entry) if "\N{REPLACEMENT CHARACTER}" in text else None
        return text if raw is None else raw.decode("utf-8", "surrogateescape")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _bytes(entry: str) -> bytes | None:
    """The bytes of a vocabulary entry: `<0xED>`, or one character per byte as in GPT-2; None for other entries."""
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", entry):
        return bytes.fromhex(match[1])
    return bytes(BYTES[c] for c in entry) if set(entry) <= set(BYTES) else None


def _byte_characters() -> dict[str, int]:
    """GPT-2's character -> byte: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_characters()


def escape_bytes(text: str, completed: str = "") -> str:
    """Write incomplete characters as `<ED 95>`, and bytes at the start that complete one as `<9C=한>`."""

    def escaped(part: re.Match[str]) -> str:
        more = f"={completed}" if completed and part.start() == 0 else ""
        return f"<{part[0].encode('utf-8', 'surrogateescape').hex(' ').upper()}{more}>"

    return BYTE_RUNS.sub(escaped, text)


def completed_characters(texts: list[str]) -> list[str]:
    """The characters that the bytes at the start of each text complete; `texts` are those of consecutive tokens."""
    found, begun = [], b""
    for text in texts:
        part = BYTE_RUNS.match(text)
        if part is None:
            found.append("")
        else:
            joined = (begun + part[0].encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
            found.append(BYTE_RUNS.sub("", joined))
            text = joined + text[part.end() :]
        rest = BYTE_RUNS.findall(text)
        begun = rest[-1].encode("utf-8", "surrogateescape") if rest and text.endswith(rest[-1]) else b""
    return found


def drawable(text: str, completed: str = "") -> tuple[str, str]:
    """(leading space or "", the rest with everything invisible escaped)."""
    lead = " " if text[:1] == " " and text.strip(" ") else ""
    parts = BYTE_RUNS.split(text[len(lead) :])
    for at, part in enumerate(parts):
        plain = part.translate({10: "↵", 9: "⇥", 32: "␣"})
        inside = at == 1 and not lead and not parts[0]
        parts[at] = escape_bytes(part, _escape(completed) if inside else "") if at % 2 else _escape(plain)
    return lead, "".join(parts)


def _escape(text: str) -> str:
    escaped = visible(text, len(text))
    # A combining character would change the mark drawn before it.
    return "◌" + escaped if escaped and not cell_len(escaped[0]) else escaped


def draw_tokens(line: list[Token], starts: set[int], view: View, texts: TokenTexts) -> list[Text]:
    """Each token with the border to the one before; padding is left out.

    `starts` are the positions at which another text begins.
    """
    drawn: list[Text] = []
    closed = True
    line = [token for token in line if token.role != "pad"]
    roles = [token.role for token in line]
    completed = completed_characters([texts(token.id if token.label is None else token.label) for token in line])
    for at, token in enumerate(line):
        look = view.looks[token.role]
        opening, closing = ("", "") if not any(look.around) else look.around
        opening = opening if at == 0 or at in starts or roles[at - 1] != token.role else ""
        closing = closing if at + 1 == len(line) or at + 1 in starts or roles[at + 1] != token.role else ""
        lead, text = _draw(token, look, texts, completed[at])
        marked = opening or look.form != "{token}"
        border = f" {BREAK} " if at in starts else lead or ("" if closed or marked else "·")
        drawn.append(Text.assemble((border, "dim"), (opening + text + closing, look.colours[at % 2])))
        closed = bool(closing) or look.form != "{token}"
    return drawn


def _draw(token: Token, look: Look, texts: TokenTexts, completed: str) -> tuple[str, str]:
    """(leading space or "", the token in the form of its role)."""
    if token.name is not None:
        lead, text = drawable(texts(token.id), "")
        return lead, look.form.format(token=text, label=visible(token.name, 40))
    truth = token.id if token.label is None else token.label
    lead, text = drawable(texts(token.id), completed if token.id == truth else "")
    other, label = drawable(texts(truth), completed)
    if "{token}" not in look.form:  # only the label is drawn, so its space counts
        return other, look.form.format(label=label)
    return lead, look.form.format(token=text, label=label if lead == other else ("␣" if other else "·") + label)


def draw_padding(line: list[Token], view: View) -> Text:
    """The padding of a row as one count."""
    count = sum(token.role == "pad" for token in line)
    look = view.looks["pad"]
    text = look.form.format(count=count).join(look.around)
    return Text(f" {text}" if count else "", look.colours[0])


def wrap_row(row: list[Text], last: Text, width: int, most: int | None) -> list[Text]:
    """Break drawn tokens into lines of `width` cells, with `last` at the end; after `most` lines, count the rest."""
    lines = [Text()]
    for number, piece in enumerate([*row, last]):
        for part in _folded(piece, width):
            if lines[-1].cell_len + part.cell_len > width:
                lines.append(Text())
            lines[-1].append_text(part if lines[-1] else _stripped(part))
        if most and len(lines) > most and number < len(row):
            return [*lines[:most], Text.assemble((f"… {len(row) - number:,} more tokens", "dim"), last)]
    return lines


def _stripped(piece: Text) -> Text:
    """Without the leading space, which a line break replaces."""
    return piece[len(piece) - len(piece.plain.lstrip(" ")) :]


def _folded(piece: Text, width: int) -> list[Text]:
    """A piece in parts no wider than a line."""
    cuts, used = [], 0
    for at, character in enumerate(piece.plain):
        used += cell_len(character)
        if used > width:
            cuts.append(at)
            used = cell_len(character)
    return list(piece.divide(cuts))


def legend(drawn: str, roles: set[str], view: View, width: int) -> list[Text]:
    """The meaning of the roles, and of the signs that occur in `drawn`."""
    looks = [look for role, look in view.looks.items() if role in roles]
    signs = {sign: meaning for sign, meaning in SIGNS.items() if sign in drawn}
    signs |= {sample: meaning for sample, (pattern, meaning) in ESCAPES.items() if re.search(pattern, drawn)}
    entries = [(Text(look.sample, look.colours[0]), f"{look.name}: {look.meaning}") for look in looks]
    entries += [(Text(sign, "dim"), meaning) for sign, meaning in signs.items()]
    margin = max(sample.cell_len for sample, _ in entries) + 2
    lines = []
    for sample, meaning in entries:
        for text in wrap(meaning, max(width - margin, 20)):
            lines.append(Text.assemble(sample, " " * (margin - sample.cell_len), text))
            sample = Text()
    return lines


def length_bins(lengths: np.ndarray) -> list[dict[str, int]]:
    """Number of rows per range of lengths; the ranges are equal and a power of two wide."""
    step = 1 << max(int(lengths.max() - 1) // BARS, 0).bit_length()
    numbers, counts = np.unique((lengths - 1) // step, return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return [
        {"from": number * step + 1, "to": (number + 1) * step, "rows": found.get(number, 0)}
        for number in range(int(numbers[0]), int(numbers[-1]) + 1)
    ]


def histogram(bins: list[dict[str, int]], title: str, width: int) -> list[Text]:
    """One bar per bin, drawn in eighths of a cell."""
    names = [f"{bin_['from']:,}–{bin_['to']:,}" for bin_ in bins]
    most, counts = max(bin_["rows"] for bin_ in bins), [f"{bin_['rows']:,}" for bin_ in bins]
    room = max(min(width - max(map(len, names)) - max(map(len, counts)) - 4, BAR), 1)
    lines = [Text(title, "italic")]
    for name, count, bin_ in zip(names, counts, bins, strict=True):
        eighths = -(-8 * room * bin_["rows"] // most)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(Text.assemble(f"  {name:>{max(map(len, names))}} ", (bar, BLUE[0]), f" {count}"))
    return lines


def text_starts(lengths: list[int]) -> set[int]:
    """The positions at which the second and later of consecutive texts of these lengths begin."""
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return {end for _, end in pairwise(ends[:-1])}
