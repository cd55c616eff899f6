"""How much of a data set is taken: so many hours of it, or of each language."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorsmerge_cli.data.languages import parse_language
from lorsmerge_cli.errors import UsageFault

HOW = "Write --hours 5, or --hours ca=5 for a language."


@dataclass(frozen=True)
class Hours:
    """Hours to take of a data set.

    Attributes:
        each: of all rows whose language has no hours of its own; None for all of them.
        languages: each code with its hours.
    """

    each: float | None = None
    languages: tuple[tuple[str, float], ...] = ()

    def limits(self, languages: Sequence[str]) -> list[tuple[float | None, list[int]]]:
        """Return seconds (None for all) -> indices of the rows, given by their languages, to take them from."""
        own: dict[str, list[int]] = {language: [] for language, _ in self.languages}
        rest: list[int] = []
        for index, language in enumerate(languages):
            own.get(language, rest).append(index)
        each = None if self.each is None else 3600 * self.each
        return [(each, rest), *((3600 * size, own[name]) for name, size in self.languages)]

    def check_languages(self, there: Iterable[str], place: str) -> None:
        """Check that every language with hours of its own is one of the data.

        Raises:
            UsageFault: one is not; `place` names the data.
        """
        found = dict.fromkeys(there)
        missing = [f"{name}={size:g}" for name, size in self.languages if name not in found]
        if missing:
            raise UsageFault(
                f"--hours {missing[0]}: no row of {place} is in that language.",
                f"It has: {', '.join(found) or 'nothing'}.",
            )


Given = Hours | float | str | Sequence[str | float] | Mapping[str, float] | None


def parse_hours(given: Given) -> Hours | None:
    """Return how much to take; None for everything.

    Args:
        given: hours of each data set, `LANGUAGE=HOURS`, several of them, or language -> hours.

    Raises:
        UsageFault: a number is not positive, or a language unknown or given twice.

    Example:
        >>> parse_hours(["2", "Catalan=0.5"])
        Hours(each=2.0, languages=(('ca', 0.5),))
    """
    if given is None or isinstance(given, Hours):
        return given
    if isinstance(given, Mapping):
        parts: list[tuple[str, str | float]] = list(given.items())
    else:
        listed = [given] if isinstance(given, str | int | float) else list(given)
        parts = [_parted(value) for value in listed]
    each: float | None = None
    languages: dict[str, float] = {}
    for name, value in parts:
        shown = f"{name}={value}" if name else str(value)
        size = _positive(value, shown)
        code = parse_language(name) if name else ""
        if code in languages or (not code and each is not None):
            raise UsageFault(f"--hours {shown}: {code or 'each data set'} is given twice.", HOW)
        if code:
            languages[code] = size
        else:
            each = size
    return Hours(each, tuple(languages.items())) if parts else None


def _parted(value: str | float) -> tuple[str, str | float]:
    name, sign, size = str(value).partition("=")
    if sign and not name.strip():
        raise UsageFault(f"--hours {value} names no language.", HOW)
    return (name.strip(), size) if sign else ("", value)


def _positive(value: str | float, shown: str) -> float:
    try:
        size = float(value)
    except ValueError:
        raise UsageFault(f"--hours {shown} is no number of hours.", HOW) from None
    if not math.isfinite(size):
        raise UsageFault(f"--hours {shown} is not a finite number.")
    if size <= 0:
        raise UsageFault(f"--hours {shown} is not more than 0.", HOW)
    return size
