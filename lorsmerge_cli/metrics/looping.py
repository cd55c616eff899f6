"""Texts that repeat themselves, as a decoder in a loop writes them."""

from __future__ import annotations

import zlib

MOST_COMPRESSED = 2.4  # times; Whisper decodes such texts again (Radford et al. 2022, 4.5)


def is_looping(text: str) -> bool:
    """Return whether a text repeats itself: zlib compresses it more than 2.4 times.

    Example:
        >>> is_looping("the red house " * 20), is_looping("the girl sees six birds")
        (True, False)
    """
    raw = text.encode()
    return len(raw) > MOST_COMPRESSED * len(zlib.compress(raw))
