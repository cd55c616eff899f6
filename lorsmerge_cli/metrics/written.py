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
PIECE = 2000  # characters
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
    """Return whether a text, or most pieces of a long one, is surely in another language than its reference.

    Args:
        text: that may be in another.
        reference: beside it. Where it is not found to be in `language` itself, as names are not,
            nothing is said of the text.
        language: Whisper's code of the one that both should be in.
    """
    if text == reference or not text.strip():
        return False
    ours = [written_language(piece)[0] == language for piece in _pieces(reference)]
    if 2 * sum(ours) <= len(ours):
        return False
    found = [written_language(piece) for piece in _pieces(text)]
    others = [
        code not in (language, NO_LANGUAGE) and probability > SURE for code, probability in found
    ]
    return 2 * sum(others) > len(others)


def _pieces(text: str) -> list[str]:
    """Return a text in pieces: of a long one, py3langid's probabilities are low."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
