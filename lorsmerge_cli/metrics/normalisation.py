"""What is done to a reference and a hypothesis before their words are compared."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from lorsmerge_cli.errors import UsageFault

if TYPE_CHECKING:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

NORMALISATIONS = ("raw", "basic", "marks")

# Written without spaces between words, so that a word error rate would measure segmentation.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})


def normalise(text: str, how: str) -> str:
    """A text as it is scored.

    Args:
        text: a reference or a hypothesis.
        how: `raw` only collapses white space. `basic` is Whisper's multilingual normaliser
            (Radford et al. 2022, appendix C): lower case, brackets with what is in them
            removed, and compatibility forms unified (NFKC); marks, punctuation and symbols
            become spaces, which breaks words of Hindi, Thai and others at their vowel signs.
            `marks` differs in keeping combining marks (Mn, Mc) and in NFC for NFKC, which
            would take Thai and Lao vowels apart.

    Returns:
        The words with one space between them and none around them.

    Raises:
        UsageFault: `how` is not one of `NORMALISATIONS`.
    """
    if how not in NORMALISATIONS:
        raise UsageFault(
            f"There is no normalisation {how!r}.", f"Use one of: {', '.join(NORMALISATIONS)}."
        )
    if how == "basic":
        text = _whisper_normaliser()(text)
    elif how == "marks":
        # Unicode lowers the Turkish capital I with a dot to an i followed by a combining dot,
        # which no transcript in lower case has.
        text = unicodedata.normalize("NFC", text).replace("\u0130", "i")
        text = unicodedata.normalize("NFC", _mark_keeping_normaliser()(text))
    return " ".join(text.split())


def _without_symbols(s: str) -> str:
    """Punctuation, symbols and enclosing marks as spaces; marks stay where they have a base."""
    kept: list[str] = []
    for character in s:
        category = unicodedata.category(character)
        if category in ("Mn", "Mc"):
            # The selector after an emoji, or an accent over a sign, goes with what it stood on.
            if kept and not kept[-1].isspace():
                kept.append(character)
        else:
            kept.append(" " if category[0] in "PS" or category == "Me" else character)
    return "".join(kept)


@cache
def _whisper_normaliser() -> BasicTextNormalizer:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


@cache
def _mark_keeping_normaliser() -> BasicTextNormalizer:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser = BasicTextNormalizer()
    normaliser.clean = _without_symbols  # lower case and brackets stay Whisper's
    return normaliser
