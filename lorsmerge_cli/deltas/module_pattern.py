"""Patterns of module names in PEFT's `alpha_pattern`, matched without backtracking.

A config may be hostile, and Python's `re` needs years for some patterns of ten characters. The patterns
supported here have what such configs contain: names, dots, character sets, groups of alternatives, and
repetitions of a single character. Matching takes time proportional to pattern times name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MAX_LENGTH = 1000  # characters
MAX_DEPTH = 20  # groups in one another
PLAIN = re.compile(r"\^?[\w.\-]+")
TOKEN = re.compile(
    r"(?P<mark>\((?:\?:)?|[)|^$])"
    r"|(?P<one>\\[.\-_dw]|\[\^?(?:[\w.\-]|\\[.\-_dw])+\]|[\w.\-])"
    r"(?:(?P<sign>[*+?])|\{(?P<low>\d{1,2})(?P<to>,(?P<high>\d{1,2})?)?\})?\??"
)

# (text, indices where a part may begin) -> indices where it may end
Ends = Callable[[str, frozenset[int]], frozenset[int]]


class ModulePattern:
    """A pattern matched with a module's name, or with the end of it after a dot, as PEFT does.

    Args:
        text: a regular expression of the supported form.

    Raises:
        ValueError: an unsupported form.

    Example:
        >>> ModulePattern(r"encoder.*(q|v)_proj").matches("model.encoder.layers.0.q_proj")
        True
    """

    def __init__(self, text: str) -> None:
        self.text = text
        is_plain = len(text) <= MAX_LENGTH and PLAIN.fullmatch(text)
        self._plain = re.compile(rf"(?:.*\.)?(?:{text})$") if is_plain else None  # common, and fast
        self._ends = _parse(text)

    def matches(self, module: str) -> bool:
        r"""Tell whether PEFT's `re.match(rf"(.*\.)?({text})$", module)` matches."""
        if self._plain is not None:
            return self._plain.match(module) is not None
        starts = {0, *(index + 1 for index, character in enumerate(module) if character == ".")}
        return len(module) in self._ends(module, frozenset(starts))


def _parse(text: str) -> Ends:
    groups: list[list[list[Ends]]] = [[[]]]  # open groups, their alternatives, their parts
    index = 0
    while index < len(text):
        token = TOKEN.match(text, index)
        if token is None or len(text) > MAX_LENGTH or len(groups) > MAX_DEPTH:
            raise ValueError(f"a pattern of an unsupported form, at {text[index:][:20]!r}")
        index = token.end()
        mark = token["mark"]
        if mark == ")":
            if len(groups) == 1:
                raise ValueError("a pattern with an unmatched )")
            alternatives = groups.pop()
            groups[-1][-1].append(_any_of([_sequence(parts) for parts in alternatives]))
        elif mark == "|":
            groups[-1].append([])
        elif mark in ("^", "$"):
            groups[-1][-1].append(_at_start if mark == "^" else _at_end)
        elif mark:
            groups.append([[]])
        else:
            groups[-1][-1].append(_repeated(token))
    if len(groups) > 1:
        raise ValueError("a pattern with an unmatched (")
    return _any_of([_sequence(parts) for parts in groups[0]])


def _repeated(token: re.Match[str]) -> Ends:
    """Match one character as often as the token says."""
    try:
        one = re.compile(token["one"])
    except re.error as error:
        raise ValueError(f"a pattern with an invalid set: {error}") from None
    low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(token["sign"] or "", (1, 1))
    if token["low"]:
        low = int(token["low"])
        high = (int(token["high"]) if token["high"] else None) if token["to"] else low

    def ends(text: str, starts: frozenset[int]) -> frozenset[int]:
        found = set(starts) if low == 0 else set()
        reached, count = set(starts), 0
        while reached and (high is None or count < high):
            reached = {index + 1 for index in reached if one.match(text, index, index + 1)}
            count += 1
            if high is None and count >= low:
                reached -= found
            if count >= low:
                found |= reached
        return frozenset(found)

    return ends


def _sequence(parts: Iterable[Ends]) -> Ends:
    parts = tuple(parts)

    def ends(text: str, starts: frozenset[int]) -> frozenset[int]:
        for part in parts:
            starts = part(text, starts)
        return starts

    return ends


def _any_of(alternatives: Iterable[Ends]) -> Ends:
    alternatives = tuple(alternatives)

    def ends(text: str, starts: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(one(text, starts) for one in alternatives))

    return ends


def _at_start(_text: str, starts: frozenset[int]) -> frozenset[int]:
    return starts & {0}


def _at_end(text: str, starts: frozenset[int]) -> frozenset[int]:
    return starts & {len(text)}
