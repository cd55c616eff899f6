"""How a byte-level tokenizer, as Whisper's, writes characters that it has no token for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _bytes_of_letters() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for.

    Printable characters of Latin-1 stand for themselves; the other bytes, in their order, are the characters
    from 256 on (Radford et al. 2019).
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def spelled_out(tokens: Sequence[str]) -> tuple[int, int]:
    """Return how many characters the tokens write, and how many of them take several tokens.

    Args:
        tokens: of a text, as the vocabulary has them.

    Example:
        >>> spelled_out(["a", "Ã", "©"])
        (2, 1)
    """
    table = _bytes_of_letters()
    count = spelled = 0
    told = True  # whether the last character is counted as one of several tokens
    for token in tokens:
        for place, letter in enumerate(token):
            begins = table.get(letter, 0) & 0xC0 != 0x80  # UTF-8: the others continue a character
            count += begins
            if begins:
                told = False
            elif not place and not told:
                spelled, told = spelled + 1, True
    return count, spelled


def share_spelled_out(tokenizer: Any, texts: Sequence[str]) -> float:
    """Return the share of the texts' characters that a tokenizer spells out in bytes.

    Args:
        tokenizer: of a model, byte-level as Whisper's.
        texts: without special tokens.
    """
    count = spelled = 0
    for text in texts:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        several = spelled_out(tokenizer.convert_ids_to_tokens(found))
        count, spelled = count + several[0], spelled + several[1]
    return spelled / count if count else 0.0
