"""The sum of scaled deltas (Eq. 8)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def sum_(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return sum_i lambda_i * delta_i, as one running sum.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> sum_([(torch.tensor([1.0, 2.0]), 0.5), (torch.tensor([4.0, 0.0]), 0.25)])
        tensor([1.5000, 1.0000])
    """
    total: Tensor | None = None
    for delta, scale in deltas:
        if total is None:
            total = delta * scale
        elif delta.dtype == torch.float64 and total.dtype != torch.float64:
            total = total.double().add_(delta, alpha=scale)
        else:
            total.add_(delta, alpha=scale)
        del delta  # before the next one is made
    if total is None:
        raise ValueError("no deltas to combine")
    return total
