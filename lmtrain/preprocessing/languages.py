"""TODO."""

import re

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import UsageError, suggestion


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> None:
    """Tell a multilingual tokenizer (mBART, M2M100, NLLB) which way the translation goes.

    Raises UsageError, with a suggestion, for a language that it does not know.
    """
    for attribute, flag, language in (("src_lang", "--source-lang", source), ("tgt_lang", "--target-lang", target)):
        if not hasattr(tokenizer, attribute):
            continue
        known = languages(tokenizer)
        if not language:
            if known and getattr(tokenizer, attribute) is None:
                raise UsageError(f"{flag} is missing: this tokenizer wants one of {', '.join(known[:12])}, …")
            continue
        if known and language not in known:
            near = suggestion(language, known) or "; there are " + ", ".join(known[:12]) + (
                ", …" if known[12:] else ""
            )
            raise UsageError(f"{flag} {language}: the tokenizer does not know this language{near}")
        setattr(tokenizer, attribute, language)


def languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The languages of a multilingual tokenizer, as it wants them named; empty where it does not say."""
    listed = getattr(tokenizer, "lang_code_to_id", None) or [
        token for token in tokenizer.all_special_tokens if re.fullmatch(r"[a-z]{2,3}_[A-Za-z]{2,4}", token)
    ]
    return sorted(listed)
