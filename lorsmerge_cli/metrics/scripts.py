"""The script that a text is written in, and those that a language is."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

LATIN = "LATIN"
# Names as Unicode's characters begin with them, of Whisper's languages that are not written in Latin
# letters alone; two where both are in use
_WRITTEN = {
    "CYRILLIC": "ru uk bg sr mk mn kk be tg tt ba bs az uz tk",
    "LATIN": "sr bs az uz tk kk tt ms ha su jw sd pa",
    "ARABIC": "ar fa ur ps sd pa ms ha kk",
    "CJK": "zh yue ja ko", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "BOPOMOFO": "zh",
    "HEBREW": "he yi", "GREEK": "el", "DEVANAGARI": "hi mr ne sa sd", "TAMIL": "ta", "THAI": "th",
    "TELUGU": "te", "MALAYALAM": "ml", "BENGALI": "bn as", "KANNADA": "kn", "ARMENIAN": "hy",
    "GURMUKHI": "pa", "SINHALA": "si", "KHMER": "km", "GEORGIAN": "ka", "GUJARATI": "gu",
    "ETHIOPIC": "am", "LAO": "lo", "MYANMAR": "my", "TIBETAN": "bo", "MONGOLIAN": "mn",
    "JAVANESE": "jw", "SUNDANESE": "su",
}  # fmt: skip
NO_SCRIPT = frozenset(
    {"MODIFIER", "SUPERSCRIPT", "SUBSCRIPT"}
)  # signs that Unicode counts as letters


def scripts_of(language: str) -> frozenset[str]:
    """Return the scripts of a language of Whisper's, by Unicode's names.

    Example:
        >>> sorted(scripts_of("ja")), sorted(scripts_of("ca"))
        (['CJK', 'HIRAGANA', 'KATAKANA'], ['LATIN'])
    """
    own = frozenset(script for script, codes in _WRITTEN.items() if language in codes.split())
    return own or frozenset({LATIN})


def main_script(text: str) -> str | None:
    """Return the script that most letters of a text are of; None for no letters.

    Example:
        >>> main_script("Привет, John!"), main_script("1, 2, 3")
        ('CYRILLIC', None)
    """
    found = Counter(map(_script, filter(str.isalpha, unicodedata.normalize("NFKC", text))))
    del found[""]
    return found.most_common(1)[0][0] if found else None


@lru_cache(1 << 14)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").replace("-", " ").partition(" ")[0]
    return "" if name in NO_SCRIPT else name
