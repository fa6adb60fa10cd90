"""Source and target language of multilingual translation tokenizers."""

import re

from transformers import PreTrainedTokenizerBase

from lmtrain.errors import UsageError, suggestion


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
            listed = "; it knows " + ", ".join(known[:12]) + (", …" if known[12:] else "")
            hint = suggestion(language, known) or listed
            raise UsageError(f"{flag} {language}: the tokenizer does not know this language{hint}")
        setattr(tokenizer, attribute, language)


def languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The language codes of a multilingual tokenizer, sorted; empty if it lists none."""
    listed = getattr(tokenizer, "lang_code_to_id", None) or [
        token for token in tokenizer.all_special_tokens if re.fullmatch(r"[a-z]{2,3}_[A-Za-z]{2,4}", token)
    ]
    return sorted(listed)
