"""How many translations did not come out in English, as far as that can be told."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Frequent words that are (nearly) no word of the other side.
_ENGLISH_TEXT = (
    "the and of to is was that it for with as he she his her at by from are were been this have "
    "had not but they you which their we an be will would there what who its our my if when"
)
_OTHERS_TEXT = (
    "el la los las les le un una une des du del della il lo gli di che que qui et y e ed und der "
    "die das dem den ein eine ist nicht mit von zu auf für és els amb per pel dels al au aux est "
    "dans sur pour pas nous vous je por para con más pero como son sono nel nella alla anche "
    "o os uma não com het een van niet en och att det som är inte den på til ikke je se si na do "
    "za ve bir bu için ile yang dan di ini itu dengan untuk yn mae ei nad kas ja ei ning un ir ka "
    "nie jest że"
)
_ENGLISH, _OTHERS = frozenset(_ENGLISH_TEXT.split()), frozenset(_OTHERS_TEXT.split())


def share_not_english(hypotheses: Sequence[str]) -> float | None:
    """Share of the hypotheses that are surely not English.

    A hypothesis counts when most of its letters are of another script, or when it has more of
    other languages' frequent words than of English's. One that says too little counts as
    English, so the share is a lower bound.

    Returns:
        0 to 1; None where no hypothesis holds a letter.
    """
    told = [hypothesis for hypothesis in hypotheses if any(map(str.isalpha, hypothesis))]
    if not told:
        return None
    return sum(map(_not_english, told)) / len(told)


def _not_english(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    latin = sum("LATIN" in unicodedata.name(character, "") for character in letters)
    if 2 * latin < len(letters):
        return True
    words = [word.strip(".,;:!?¿¡\"'()").lower() for word in text.split()]
    english = sum(word in _ENGLISH for word in words)
    return sum(word in _OTHERS for word in words) > english
