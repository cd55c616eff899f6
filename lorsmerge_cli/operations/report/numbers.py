"""How a report writes numbers. Nothing reads them back: what compares numbers has the numbers."""

from __future__ import annotations

import math

DECIMALS = 2  # of a score, an error, a difference
NONE = "\N{EN DASH}"  # in place of a number that there is not
MINUS = "\N{MINUS SIGN}"  # as wide as a plus


def rounded(value: float) -> float:
    """Return a score as exactly as `number` shows it."""
    return round(value, DECIMALS)


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


def percent(share: float) -> str:
    """Return a share of 1 in whole percent.

    Example:
        >>> percent(0.873)
        '87 %'
    """
    return f"{100 * share:.0f} %".replace("-", MINUS)


def percents(low: float, high: float) -> str:
    """Return an interval of shares of 1 in whole percent, without the sign.

    Example:
        >>> percents(0.7, 0.951)
        '70 to 95'
    """
    return f"{100 * low:.0f} to {100 * high:.0f}".replace("-", MINUS)


def setting(value: object) -> str:
    """Return a ratio, hours or a count without trailing zeros; a word as it is, a dash for nothing.

    Example:
        >>> setting(0.20), setting("own")
        ('0.2', 'own')
    """
    if isinstance(value, float | int):
        return f"{value:g}"
    return str(value) if value else NONE


def span(low: float, high: float) -> str:
    """Return the ends of a range of lambda, or the one number that both are in three digits.

    Example:
        >>> span(0.1, 0.25), span(0.15, 0.15)
        ('0.1 to 0.25', '0.15')
    """
    return " to ".join(dict.fromkeys((f"{low:.3g}", f"{high:.3g}")))
