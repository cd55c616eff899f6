"""Texts that repeat themselves, as a decoder in a loop writes them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

MOST_COMPRESSED = 2.4  # times; Whisper decodes such texts again (Radford et al. 2022, 4.5)
LONGEST = 8  # words of what is repeated


def is_looping(text: str) -> bool:
    """Return whether a text repeats itself: zlib compresses it more than 2.4 times.

    Example:
        >>> is_looping("the red house " * 20), is_looping("the girl sees six birds")
        (True, False)
    """
    return compression_ratio(text) > MOST_COMPRESSED


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes a text in UTF-8; 0 for an empty one.

    Example:
        >>> round(compression_ratio("the red house " * 20), 1)
        10.8
    """
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def most_repeats(words: Sequence[str]) -> int:
    """Return how often in a row the most repeated 1 to 8 words follow each other; 0 for no words.

    Example:
        >>> most_repeats("a b a b a b c".split()), most_repeats(["a", "b"])
        (3, 1)
    """
    most = min(len(words), 1)
    for size in range(1, min(LONGEST, len(words) // 2) + 1):
        equal = 0  # words that are like those `size` before them, up to here
        for before, word in zip(words, words[size:], strict=False):
            equal = equal + 1 if word == before else 0
            most = max(most, equal // size + 1)
    return most
