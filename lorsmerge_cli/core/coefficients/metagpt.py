"""MetaGPT: coefficients in proportion to the deltas' energy (Zhou et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence


def metagpt(norms: Sequence[float]) -> list[float]:
    """Return norm_i^2 / sum_j norm_j^2 for each delta (arXiv:2406.11385); the sum of all is 1.

    Args:
        norms: L2 norms of whole deltas, none of them zero.

    Example:
        >>> metagpt([1.0, 2.0])
        [0.2, 0.8]
    """
    largest = max(norms)  # squares of the norms themselves could overflow
    squares = [(norm / largest) ** 2 for norm in norms]
    return [square / sum(squares) for square in squares]
