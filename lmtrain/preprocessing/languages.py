"""Source and target language of multilingual translation tokenizers."""

import re

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import UsageError, suggestion

LANGUAGE = r"[a-z]{2,3}_[A-Za-z]{2,4}|__\w+__"
"""Pattern of the tokens that name a language."""


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> None:
    """Set the translation direction of a multilingual tokenizer (mBART, M2M100, NLLB); others are left alone.

    Raises UsageError, with a suggestion, for a missing or an unknown language.
    """
    for attribute, flag, language in (("src_lang", "--source-lang", source), ("tgt_lang", "--target-lang", target)):
        if not hasattr(tokenizer, attribute):
            continue
        known = languages(tokenizer)
        if not language:
            if known and getattr(tokenizer, attribute) is None:
                raise UsageError(f"{flag} is missing: this tokenizer needs one of {', '.join(known[:12])}, …")
            continue
        if known and language not in known:
            raise UsageError(f"{flag} {language}: the tokenizer does not know this language{_hint(language, known)}")
        setattr(tokenizer, attribute, language)


def _hint(language: str, known: list[str]) -> str:
    near = [code for code in known if code.startswith(re.split("[_-]", language.lower())[0])]
    if 0 < len(near) <= 4:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return suggestion(language, known) or "; it knows " + ", ".join(known[:12]) + (", …" if known[12:] else "")


def languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The language codes of a multilingual tokenizer, sorted; empty if it lists none.

    mBART and NLLB have them as tokens (en_XX, eng_Latn), M2M100, PLBART and SeamlessM4T between underscores (__en__).
    """
    listed = getattr(tokenizer, "lang_code_to_id", None) or _language_tokens(tokenizer)
    return sorted(code.strip("_") for code in listed)


def language_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens that name a language in front of or behind a text; empty for other tokenizers."""
    if not hasattr(tokenizer, "src_lang"):
        return []
    own = getattr(tokenizer, "lang_code_to_id", None)
    codes = own or {token: tokenizer.convert_tokens_to_ids(token) for token in _language_tokens(tokenizer)}
    return [*codes.values()]


def _language_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token for token in tokenizer.all_special_tokens if re.fullmatch(LANGUAGE, token)]
