"""The script of the references, which decides how text metrics split them into words.

BLEU, TER and ROUGE count words. In a script without spaces a whole sentence would be one word, and rouge_score's tokenizer
drops everything but a to z and digits, so text in other alphabets would score 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unicodedata import normalize

import regex

from lmtrain.errors import UsageError

Split = Callable[[str], list[str]]

SCRIPTS = {
    "Korean": r"\p{Hangul}",
    "Japanese": r"[\p{Hiragana}\p{Katakana}]",
    "Chinese": r"\p{Han}",
    "unspaced": r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]",
    "spaced": r"[\p{L}--[\p{Hangul}\p{Hiragana}\p{Katakana}\p{Han}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]]",
}
"""Name -> pattern of one character (regex.V1)."""

DENSITY = {"Korean": 3, "Japanese": 3, "Chinese": 3, "unspaced": 1, "spaced": 1}
"""Letters of an alphabet that one character stands for: Korean with English terms in it stays Korean."""

LATIN_ONLY = 0.995
"""Share of a to z among the letters from which rouge_score's own tokenizer is used."""

MORPHEMES = {"Korean": ("mecab_ko", "ko-mecab", "korean"), "Japanese": ("MeCab", "ja-mecab", "japanese")}
"""Script -> (module, sacrebleu's tokenizer, the extra of lmtrain that installs both)."""

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
CHARACTER = regex.compile(r"[\p{Latin}\p{N}]+|\p{L}\p{M}*")
"""A letter with its combining marks; a run of Latin letters or digits counts as one character."""


@dataclass(frozen=True)
class Script:
    """How to split one set of references."""

    name: str
    """A key of SCRIPTS."""
    bleu: str
    """Name of sacrebleu's tokenizer for BLEU."""
    units: str
    """What ROUGE counts: rouge_score, words, characters or morphemes."""
    split: Split | None
    """Splits a text into ROUGE's units; None: rouge_score's tokenizer does."""
    spaced: bool
    """Whether spaces separate words."""
    note: str | None = None
    """What to report to the user."""


def detect_script(texts: Iterable[str], bleu: str | None = None, units: str | None = None) -> Script:
    """The script of `texts`; `bleu` and `units` override its tokenizer for BLEU and its units for ROUGE.

    ROUGE counts words in Korean even if a morpheme analyser is installed: unrelated sentences share most of the few
    particles and endings. Raises UsageError for a tokenizer that is unknown or not installed.
    """
    name, latin = _dominant(texts)
    spaced = name in ("spaced", "Korean")
    note = None
    if bleu is None:
        bleu, note = _bleu_tokenizer(name)
    else:
        _check(bleu)
    if units is None:
        units = "rouge_score" if name == "spaced" and latin >= LATIN_ONLY else "words" if spaced else "characters"
    return Script(name, bleu, units, _split(units, name), spaced, note)


def _dominant(texts: Iterable[str]) -> tuple[str, float]:
    """(the script with the most letters weighted by DENSITY, the share of a to z among all letters)."""
    counts = dict.fromkeys(SCRIPTS, 0)
    patterns = {name: regex.compile(pattern, regex.V1) for name, pattern in SCRIPTS.items()}
    letters = ascii_letters = 0
    for text in texts:
        if text.isascii():
            own = sum(map(str.isalpha, text))
            counts["spaced"] += own
            ascii_letters += own
            letters += own
            continue
        for name, pattern in patterns.items():
            found = len(pattern.findall(text))
            counts[name] += found
            letters += found
        ascii_letters += sum(character.isascii() and character.isalpha() for character in text)
    if counts["Japanese"] and counts["Chinese"] <= 10 * counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese")  # kanji
    name = max(counts, key=lambda script: counts[script] * DENSITY[script])
    return (name if letters else "spaced"), ascii_letters / max(letters, 1)


def _bleu_tokenizer(name: str) -> tuple[str, str | None]:
    """(sacrebleu's tokenizer for a script, a note where a better one is not installed)."""
    if name not in MORPHEMES:
        return {"Chinese": "zh", "unspaced": "char"}.get(name, "13a"), None
    module, tokenizer, extra = MORPHEMES[name]
    if find_spec(module):
        return tokenizer, None
    note = (
        f"BLEU of {name} text counts characters; to count morphemes: pip install 'lmtrain[{extra}]'. "
        "chrF does not depend on it"
    )
    return "char", note


def _check(bleu: str) -> None:
    from sacrebleu.metrics.bleu import BLEU

    if bleu not in BLEU.TOKENIZERS:
        raise UsageError(f"--bleu-tokenize {bleu}: unknown tokenizer; there are {', '.join(BLEU.TOKENIZERS)}")
    for name, (module, tokenizer, extra) in MORPHEMES.items():
        if bleu == tokenizer and not find_spec(module):
            raise UsageError(f"--bleu-tokenize {bleu}: not installed; for {name} text: pip install 'lmtrain[{extra}]'")


def _split(units: str, name: str) -> Split | None:
    if units == "rouge_score":
        return None
    if units == "morphemes":
        return _morphemes(name)
    pattern = CHARACTER if units == "characters" else WORD
    return lambda text: pattern.findall(normalize("NFC", text).lower())


def _morphemes(name: str) -> Split:
    if name not in MORPHEMES:
        raise UsageError("--rouge-tokenize morphemes: only for Korean and Japanese references")
    module, _, extra = MORPHEMES[name]
    if not find_spec(module):
        raise UsageError(f"--rouge-tokenize morphemes: not installed; for {name} text: pip install 'lmtrain[{extra}]'")
    tokenizer = _morpheme_tokenizer(name)
    return lambda text: [unit for unit in tokenizer(normalize("NFC", text).lower()).split() if WORD.search(unit)]


def _morpheme_tokenizer(name: str) -> Any:
    if name == "Korean":
        from sacrebleu.tokenizers.tokenizer_ko_mecab import TokenizerKoMecab

        return TokenizerKoMecab()
    from sacrebleu.tokenizers.tokenizer_ja_mecab import TokenizerJaMecab

    return TokenizerJaMecab()
