"""How a language is written, as far as metrics of text have to know: where its words end.

BLEU, TER and ROUGE count words. Where a script does not part them by spaces a whole sentence would be one word, and
where a metric knows Latin letters alone the rest of the world scores 0. So the script of the references decides.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
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

DENSITY = {"Korean": 3, "Japanese": 3, "Chinese": 3, "unspaced": 1, "spaced": 1}
"""How many letters of an alphabet one character stands for: Korean with English terms in it stays Korean."""

LATIN_ALONE = 0.995
"""From this share of the letters a to z on, ROUGE is rouge_score's own, which knows no others."""

MORPHEMES = {"Korean": ("mecab_ko", "ko-mecab", "korean"), "Japanese": ("MeCab", "ja-mecab", "japanese")}
"""Script -> (module, sacrebleu's tokenizer, the extra of lmtrain that brings both)."""

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
CHARACTER = regex.compile(r"[\p{Latin}\p{N}]+|\p{L}\p{M}*")
"""A letter with its marks; what is written in Latin letters or digits stays whole."""


@dataclass(frozen=True)
class Script:
    """How one set of references is written.

    `bleu` is sacrebleu's tokenizer; `units` names what ROUGE counts and `split` makes them, None where they are
    rouge_score's own; `spaced` says whether words are parted by spaces; `note` is to be said aloud.
    """

    name: str
    bleu: str
    units: str
    split: Split | None
    spaced: bool
    note: str | None = None


def detect_script(texts: Iterable[str], bleu: str | None = None, units: str | None = None) -> Script:
    """How `texts` are written; `bleu` and `units` override what would follow from it.

    Korean, which parts its words by spaces, is counted in words by ROUGE also where morphemes could be had: particles
    and endings are so few that unrelated sentences share them. Raises UsageError for what is not installed.
    """
    name, latin = _script(texts)
    spaced = name in ("spaced", "Korean")
    note = None
    if bleu is None:
        bleu, note = _bleu_tokenizer(name)
    else:
        _check(bleu)
    if units is None:
        units = "rouge_score" if name == "spaced" and latin >= LATIN_ALONE else "words" if spaced else "characters"
    return Script(name, bleu, units, _split(units, name), spaced, note)


def _script(texts: Iterable[str]) -> tuple[str, float]:
    """(the script with the most letters, the share of a to z among the letters)."""
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
    if name in MORPHEMES:
        module, tokenizer, extra = MORPHEMES[name]
        if find_spec(module):
            return tokenizer, None
        return "char", (f"BLEU of {name} text is made of characters here; for morphemes: pip install 'lmtrain[{extra}]'. "
                        "chrF is the same with and without")  # fmt: skip
    return {"Chinese": "zh", "unspaced": "char"}.get(name, "13a"), None


def _check(bleu: str) -> None:
    from sacrebleu.metrics.bleu import BLEU

    if bleu not in BLEU.TOKENIZERS:
        raise UsageError(f"--bleu-tokenize {bleu}: there are {', '.join(BLEU.TOKENIZERS)}")
    for name, (module, tokenizer, extra) in MORPHEMES.items():
        if bleu == tokenizer and not find_spec(module):
            raise UsageError(f"--bleu-tokenize {bleu}: for {name} install it: pip install 'lmtrain[{extra}]'")


def _split(units: str, name: str) -> Split | None:
    if units == "rouge_score":
        return None
    if units == "morphemes":
        return _morphemes(name)
    pattern = CHARACTER if units == "characters" else WORD
    return lambda text: pattern.findall(normalize("NFC", text).lower())


def _morphemes(name: str) -> Split:
    if name not in MORPHEMES:
        raise UsageError("--rouge-tokenize morphemes: for Korean and Japanese references only")
    module, _, extra = MORPHEMES[name]
    if not find_spec(module):
        raise UsageError(f"--rouge-tokenize morphemes: for {name} install it: pip install 'lmtrain[{extra}]'")
    if name == "Korean":
        from sacrebleu.tokenizers.tokenizer_ko_mecab import TokenizerKoMecab as Tokenizer
    else:
        from sacrebleu.tokenizers.tokenizer_ja_mecab import TokenizerJaMecab as Tokenizer
    tokenizer = Tokenizer()
    return lambda text: [unit for unit in tokenizer(normalize("NFC", text).lower()).split() if WORD.search(unit)]
