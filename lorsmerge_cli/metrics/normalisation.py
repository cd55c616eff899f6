"""Normalisation of references and hypotheses before their words are compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.metrics import leaderboard

if TYPE_CHECKING:
    from transformers.models.whisper.english_normalizer import (
        BasicTextNormalizer,
        EnglishTextNormalizer,
    )

AUTO = "auto"
NORMALISATIONS = ("raw", "basic", "marks", "english", "turkish")
LEADERBOARD = "leaderboard"  # a rule for each language: `leaderboard:de`
CHOICES = (AUTO, *NORMALISATIONS, LEADERBOARD)

# Written without spaces between words, so that a word error rate would measure segmentation.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})

# Written with marks that Unicode composes with no letter, which `basic` replaces by spaces: vowel
# signs and tones from India to Cambodia, points of Arabic and Hebrew script, the tones of Yoruba
# and Lingala.
MARK_LANGUAGES = frozenset(
    {"ar", "as", "bn", "bo", "fa", "gu", "ha", "he", "hi", "jw", "km", "kn", "ln", "lo", "mg", "ml",
     "mr", "my", "ne", "pa", "ps", "sa", "sd", "si", "su", "ta", "te", "th", "ur", "yi", "yo"}
)  # fmt: skip
_OWN = {"en": "english", "tr": "turkish", "az": "turkish"}

# Words of one sign, which Unicode classes as punctuation or symbols: Burmese and Sindhi
# postpositions and conjunctions, and the Khmer "and so on".
WORD_SIGNS = frozenset("\u104c\u104d\u104e\u104f\u06fd\u06fe\u17d8")
ZERO_WIDTH_SPACE = "\u200b"  # between words of Khmer and others; not white space to Python

# British to American words of openai-whisper 20250625; its licence is beside the file
SPELLING = Path(__file__).with_name("english_spelling.json")


def check_choice(how: str) -> list[UsageFault]:
    """Return a fault for a name that is not one of `CHOICES`."""
    if how in CHOICES:
        return []
    return [UsageFault(f"There is no normalisation {how!r}.", f"Use {', '.join(CHOICES)}.")]


def normalisation_for(language: str, how: str = AUTO) -> str:
    """Return the normalisation of transcripts in a language, as `normalise` takes it.

    Args:
        language: Whisper's code.
        how: one of `CHOICES`; any but `auto` and `leaderboard` is returned as it is.

    Example:
        >>> [normalisation_for(code) for code in ("ca", "en", "hi", "tr")]
        ['basic', 'english', 'marks', 'turkish']
        >>> normalisation_for("de", "leaderboard")
        'leaderboard:de'
    """
    if how == LEADERBOARD:
        return f"{LEADERBOARD}:{language}"
    if how != AUTO:
        return how
    return _OWN.get(language) or ("marks" if language in MARK_LANGUAGES else "basic")


def leaderboard_language(how: str) -> str:
    """Return the language of `leaderboard:CODE`; empty for other normalisations.

    Example:
        >>> leaderboard_language("leaderboard:de"), leaderboard_language("basic")
        ('de', '')
    """
    name, _, language = how.partition(":")
    return language if name == LEADERBOARD else ""


@lru_cache(maxsize=1 << 16)  # a search scores many hypotheses against the same references
def normalise(text: str, how: str) -> str:
    """Return a text as it is scored.

    Args:
        text: a reference or a hypothesis.
        how: `raw` only collapses white space. `basic` is Whisper's multilingual normaliser
            (Radford et al. 2022, appendix C): lower case, brackets with what is in them
            removed, and compatibility forms unified (NFKC); marks, punctuation and symbols
            become spaces, which breaks words of Hindi, Thai and others at their vowel signs.
            `marks` differs in keeping combining marks (Mn, Mc) and in NFC for NFKC, which
            would split Thai and Lao vowels. `english` is Whisper's for English: spelling,
            contractions and numbers unified, diacritics removed. `turkish` is `basic`, except
            that I and \u0130 are the capitals of different letters. `leaderboard:CODE` is the
            Open ASR Leaderboard's for a language.

    Returns:
        The words with one space between them and none around them.

    Raises:
        UsageFault: `how` is none of these.

    Example:
        >>> normalise("Tom & Jerry (1940)!", "basic"), normalise("20 Äpfel", "leaderboard:de")
        ('tom jerry', 'zwanzig äpfel')
    """
    if language := leaderboard_language(how):
        if language == "en":
            return _english(leaderboard.with_initials_joined(text)).strip()
        return leaderboard.multilingual(text, language)
    if how not in _NORMALISERS:
        raise UsageFault(
            f"There is no normalisation {how!r}.", f"Use one of: {', '.join(NORMALISATIONS)}."
        )
    return " ".join(_NORMALISERS[how](text).split())


def _basic(text: str) -> str:
    return str(_whisper_normaliser()(text))


def _marks(text: str) -> str:
    # Unicode lowers the Turkish capital I with a dot to an i followed by a combining dot,
    # which no transcript in lower case has.
    text = unicodedata.normalize("NFC", text).replace("\u0130", "i")
    return unicodedata.normalize("NFC", _whisper_normaliser(keep_marks=True)(text))


def _english(text: str) -> str:
    try:
        return str(_english_normaliser()(text))
    except ValueError:  # a number of more than 4,300 digits, which Python refuses to read
        return str(_english_normaliser(numbers=False)(text))


def _turkish(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    return _basic(text.replace("\u0130", "i").replace("I", "\u0131"))


_NORMALISERS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "basic": _basic,
    "marks": _marks,
    "english": _english,
    "turkish": _turkish,
}


def _without_symbols(s: str) -> str:
    """Replace punctuation, symbols and enclosing marks by spaces; keep marks that have a base."""
    kept: list[str] = []
    for character in s:
        category = unicodedata.category(character)
        if category in ("Mn", "Mc"):
            # The selector after an emoji, or an accent over a sign, is removed with its base.
            if kept and not kept[-1].isspace():
                kept.append(character)
        elif character in WORD_SIGNS:
            kept.append(character)
        else:
            blank = category[0] in "PS" or category == "Me" or character == ZERO_WIDTH_SPACE
            kept.append(" " if blank else character)
    return "".join(kept)


@cache
def _whisper_normaliser(keep_marks: bool = False) -> BasicTextNormalizer:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser = BasicTextNormalizer()
    if keep_marks:
        normaliser.clean = _without_symbols  # lower case and brackets stay Whisper's
    return normaliser


@cache
def _english_normaliser(numbers: bool = True) -> EnglishTextNormalizer:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normaliser = EnglishTextNormalizer(read_json(SPELLING))
    if not numbers:
        normaliser.standardize_numbers = str  # type: ignore[assignment]
    return normaliser
