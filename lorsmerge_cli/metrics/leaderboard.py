"""Texts and word errors by the rules of the Open ASR Leaderboard.

https://github.com/huggingface/open_asr_leaderboard; for languages other than English, its
multilingual rules of 2026.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

INITIALS = re.compile(r"\b([a-z])\.([a-z])(?:\.([a-z]))?(?:\.([a-z]))?\b", re.IGNORECASE)
DOTS = re.compile(r"\s*\.{3,}\s*")
GROUPS = re.compile(r"(\d)\s+(\d{3})\b")  # of thousands: 10 000
NO_WORD = ("Cc", "Cf", "Cn", "Co", "Cs")  # categories of characters that stand for nothing


def with_initials_joined(text: str) -> str:
    """Return an English text with U.S.A. as USA and without dots of ellipsis.

    Example:
        >>> with_initials_joined("the U.S.A. ... e.g. 1.5")
        'the USA. eg. 1.5'
    """
    return INITIALS.sub(lambda match: "".join(match.groups("")), DOTS.sub(" ", text))


def multilingual(text: str, language: str) -> str:
    """Return a text of a language other than English as it is compared.

    Lower case, without what is in brackets, punctuation and symbols as spaces, marks kept, NFKC;
    then digits as words where num2words has the language.

    Args:
        text: any.
        language: Whisper's code.

    Example:
        >>> multilingual("Ich habe 21 Äpfel (rote), [Lachen] gell?", "de")
        'ich habe einundzwanzig äpfel gell'
    """
    text = _normaliser()(text)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in NO_WORD)
    text = GROUPS.sub(r"\1\2", " ".join(text.split()))
    return re.sub(r"\d+", lambda match: _in_words(match.group(), language), text)


def _in_words(digits: str, language: str) -> str:
    from num2words import num2words

    try:
        return str(num2words(int(digits), lang=language))
    except Exception:  # a language or a number it lacks: each language fails in its own way
        return digits


def joined(reference: str, hypothesis: str) -> tuple[str, str]:
    """Return two texts with compounds joined where only spaces set them apart.

    Args:
        reference: normalised.
        hypothesis: likewise.

    Example:
        >>> joined("der hausmeister kam", "der haus meister kommt")
        ('der hausmeister kam', 'der haus meister kommt')
        >>> joined("der hausmeister kam", "der haus meister kam")
        ('der hausmeister kam', 'der hausmeister kam')
    """
    pair = reference.split(), hypothesis.split()
    texts: tuple[list[str], list[str]] = ([], [])
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, *pair).get_opcodes():
        parts = pair[0][i1:i2], pair[1][j1:j2]
        same = tag != "equal" and "".join(parts[0]) == "".join(parts[1])
        for text, part in zip(texts, parts, strict=True):
            text += ["".join(part)] if same else part
    return " ".join(texts[0]), " ".join(texts[1])


def word_errors(reference: str, hypothesis: str, language: str) -> tuple[int, int, int]:
    """Return substitutions, deletions and insertions.

    Words that are one in one text and two in the other are no error, in any language; in others
    than English also more than two, where nothing beside them differs.

    Args:
        reference: normalised.
        hypothesis: likewise.
        language: Whisper's code.

    Example:
        >>> word_errors("a white paper is here", "a whitepaper was here", "en")
        (1, 0, 0)
    """
    import kaldialign

    if language != "en":
        reference, hypothesis = joined(reference, hypothesis)
    found = kaldialign.edit_distance(reference.split(), hypothesis.split(), merge_compounds=True)
    return int(found["sub"]), int(found["del"]), int(found["ins"])


def _without_symbols(s: str) -> str:
    """Replace punctuation and symbols by spaces."""
    s = unicodedata.normalize("NFKC", s)
    return "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in s)


@cache
def _normaliser() -> BasicTextNormalizer:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser = BasicTextNormalizer()
    normaliser.clean = _without_symbols  # lower case and brackets are Whisper's
    return normaliser
