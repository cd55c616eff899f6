"""Model Stock: the mean of deltas, the shorter the less they agree (Jang et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lorsmerge_cli.core.combining.mean import mean


def model_stock(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return t times the mean of scaled deltas, t their `share` (arXiv:2403.19522).

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.7320508])
        >>> model_stock([(a, 1.0), (b, 1.0)])  # at 60 degrees: t = 2/3
        tensor([1.0000, 0.5774])
    """
    pairs = list(deltas)
    return mean(pairs).mul_(share(pairs)) if len(pairs) > 1 else mean(pairs)


def share(deltas: Sequence[tuple[Tensor, float]]) -> float:
    """Return t = T c / (1 + (T - 1) c), with c the mean cosine of all pairs of T scaled deltas.

    t is held between 0 and 1 (where deltas point away from one another the formula is negative, and
    has a pole), and is 1 for one delta. A delta of zeros has the cosine 0 with any other.

    Args:
        deltas: as in `model_stock`.

    Example:
        >>> share([(torch.tensor([2.0, 0.0]), 1.0), (torch.tensor([0.0, 1.0]), 1.0)])
        0.0
    """
    if len(deltas) < 2:
        return 1.0
    # |sum of unit vectors|^2 = their number + the cosines of all ordered pairs
    directions = torch.zeros_like(deltas[0][0], dtype=torch.float64)
    real = 0
    for delta, scale in deltas:
        length = scale * float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        if length:
            directions.add_(delta, alpha=scale / abs(length))
            real += 1
    cosines = float(directions.square_().sum()) - real
    count = len(deltas)
    return share_of(cosines / (count * (count - 1)), count)


def share_of(cosine: float, count: int) -> float:
    """Return T c / (1 + (T - 1) c) for a mean cosine c of T deltas; 0 where c is negative.

    Example:
        >>> share_of(0.5, 2), share_of(-0.1, 2)
        (0.6666666666666666, 0.0)
    """
    return count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0
