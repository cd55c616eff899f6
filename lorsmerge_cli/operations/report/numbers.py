"""How a report writes numbers. Nothing reads them back: what compares numbers has the numbers."""

from __future__ import annotations

import math

DECIMALS = 2  # of a score, an error, a difference
NONE = "\N{EN DASH}"  # in place of a number that does not exist
MINUS = "\N{MINUS SIGN}"  # as wide as a plus


def number(value: float) -> str:
    """Return a score or an error; a dash for NaN.

    Example:
        >>> number(12.346)
        '12.35'
    """
    return NONE if math.isnan(value) else f"{value:.{DECIMALS}f}"


def change(value: float, error: float) -> str:
    """Return a difference and its standard error.

    Example:
        >>> change(1.5, 0.25)
        '+1.50 ± 0.25'
    """
    signed = NONE if math.isnan(value) else f"{value:+.{DECIMALS}f}".replace("-", MINUS)
    return f"{signed} ± {number(error)}"


def with_error(value: float | None, error: float, *, decimals: int = DECIMALS) -> str:
    """Return a value and its standard error, where there is one; a dash for no value.

    Example:
        >>> with_error(0.25, 0.0125, decimals=3), with_error(80, math.nan)
        ('0.250 ± 0.013', '80.00')
    """
    if value is None:
        return NONE
    around = "" if math.isnan(error) else f" ± {error:.{decimals}f}"
    return f"{value:.{decimals}f}{around}"


def percent(*shares: float) -> str:
    """Return a share of 1 in whole percent; of two, the interval between them without the sign.

    Example:
        >>> percent(0.873), percent(0.7, 0.951)
        ('87 %', '70 to 95')
    """
    shown = " to ".join(f"{100 * share:.0f}" for share in shares).replace("-", MINUS)
    return shown if len(shares) > 1 else f"{shown} %"


def setting(value: object) -> str:
    """Return a ratio, hours or a count without trailing zeros; a word as it is, a dash for nothing.

    Example:
        >>> setting(0.20), setting("own")
        ('0.2', 'own')
    """
    if isinstance(value, float | int):
        return f"{value:g}"
    return str(value) if value else NONE
