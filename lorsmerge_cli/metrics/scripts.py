"""Which script a text is written in, and whether that is one of its language's."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

LATIN = "Latin"
# Of the languages that are written in another script than Latin, or in several
_SCRIPTS = {
    "Cyrillic": "ru uk be bg mk sr kk mn tg tt ba uz az bs tk",
    "Latin": "sr kk tt uz az bs tk",
    "Arabic": "ar fa ur ps sd pa ms ha az kk uz",
    "Hebrew": "he yi", "Greek": "el", "Armenian": "hy", "Georgian": "ka",
    "Devanagari": "hi mr ne sa sd", "Bengali": "bn as", "Gujarati": "gu", "Gurmukhi": "pa",
    "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Malayalam": "ml", "Sinhala": "si",
    "Thai": "th", "Lao": "lo", "Myanmar": "my", "Khmer": "km", "Tibetan": "bo", "Ethiopic": "am",
    "Mongolian": "mn", "Javanese": "jw", "Sundanese": "su",
    "Cjk": "zh yue ja ko", "Bopomofo": "zh yue", "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko",
}  # fmt: skip
_ALSO_LATIN = frozenset(["ms", "ha", "jw", "su"])
_WIDTHS = ("HALFWIDTH ", "FULLWIDTH ")


def scripts_of(language: str) -> frozenset[str]:
    """Return the scripts that a language is written in, by Whisper's code: Latin where no other is known.

    Example:
        >>> sorted(scripts_of("ja")), sorted(scripts_of("ca"))
        (['Cjk', 'Hiragana', 'Katakana'], ['Latin'])
    """
    found = {script for script, languages in _SCRIPTS.items() if language in languages.split()}
    return frozenset(found | {LATIN} if not found or language in _ALSO_LATIN else found)


@lru_cache(1 << 16)
def _script(character: str) -> str:
    """Return the script of a letter, which begins its name in Unicode; "" of anything else."""
    if (
        not unicodedata.category(character).startswith("L")
        or unicodedata.category(character) == "Lm"
    ):
        return ""
    name = unicodedata.name(character, "")
    for width in _WIDTHS:
        name = name.removeprefix(width)
    return name.partition(" ")[0].capitalize()


def other_script(text: str, language: str) -> str:
    """Return the script that most letters of a text have, if it is none of the language's; else "".

    Args:
        text: of any length; one without letters has no script.
        language: of the text, by Whisper's code.

    Example:
        >>> other_script("Привет, Anna", "ca"), other_script("2 €", "ca")
        ('Cyrillic', '')
    """
    counts = Counter(map(_script, unicodedata.normalize("NFKC", text)))
    del counts[""]
    own = scripts_of(language)
    if 2 * sum(count for script, count in counts.items() if script in own) >= counts.total():
        return ""
    return max(counts, key=lambda script: (script not in own, counts[script]))
