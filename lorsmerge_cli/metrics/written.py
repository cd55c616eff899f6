"""Which language a text is written in, by py3langid (an extra): naive Bayes over byte n-grams.

Lui & Baldwin 2012, langid.py: https://aclanthology.org/P12-3005
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

PACKAGE = "py3langid"
_WHISPERS = {"jv": "jw"}  # codes that differ
NO_LANGUAGE = "zxx"
SURE = 0.5  # probability from which on a language is believed; that of a short text is low


def is_installed() -> bool:
    """Return whether languages can be told."""
    return find_spec(PACKAGE) is not None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def written_language(text: str) -> tuple[str, float]:
    """Return the code of the language that a text is in, Whisper's where it has one, and its probability.

    Args:
        text: of any length; of a few words the probability is low, and the language may be wrong.
    """
    code, probability = _identifier().classify(text.lower())
    return _WHISPERS.get(code, code), probability


def is_in_other_language(text: str, reference: str, language: str) -> bool:
    """Return whether a text is surely in another language than its reference.

    Args:
        text: that may be in another.
        reference: beside it. Where it is not found to be in `language` itself, as names are not,
            nothing is said of the text.
        language: Whisper's code of the one that both should be in.
    """
    if text == reference or not text.strip() or written_language(reference)[0] != language:
        return False
    found, probability = written_language(text)
    return found not in (language, NO_LANGUAGE) and probability > SURE
