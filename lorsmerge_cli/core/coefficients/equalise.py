"""Scale all deltas to one norm, so that none dominates the others."""

from __future__ import annotations

from collections.abc import Sequence


def equalise(norms: Sequence[float]) -> list[float]:
    """Return the root mean square of the norms over norm_i, for each delta.

    With it, the sum of orthogonal deltas is as long as before.

    Args:
        norms: L2 norms of whole deltas, none of them zero.

    Example:
        >>> equalise([1.0, 7.0])  # both to a norm of 5
        [5.0, 0.7142857142857143]
    """
    largest = max(norms)  # squares of the norms themselves could overflow
    mean_square = sum((norm / largest) ** 2 for norm in norms) / len(norms)
    return [largest / norm * mean_square**0.5 for norm in norms]
