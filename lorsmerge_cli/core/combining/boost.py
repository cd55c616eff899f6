"""Subspace boosting: the sum of deltas with its small singular values raised (Skorobogat et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lorsmerge_cli.core.combining.sum import sum_
from lorsmerge_cli.core.spectrum import boosted, with_values


def boost(deltas: Iterable[tuple[Tensor, float]], beta: float = 0.01) -> Tensor:
    """Return U diag(max(s, s_c)) V^T for the sum U diag(s) V^T of scaled deltas (arXiv:2506.16506).

    s_c is the first singular value at which the cumulative sum of s reaches a share of it. Values
    that are rounding errors stay zero, and the directions that the sum does not have with them.

    Args:
        deltas: pairs of a delta (d, k) (float32 or float64, not empty, finite) and its coefficient.
        beta: the share; at 0 all values are the largest, at 1 nothing is raised.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> import torch
        >>> boost([(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1.0)], beta=0.6)
        tensor([[3., 0., 0.],
                [0., 2., 0.],
                [0., 0., 2.]])
    """
    total = sum_(deltas)
    return with_values(total, lambda values: boosted(values, beta)).to(total.dtype)
