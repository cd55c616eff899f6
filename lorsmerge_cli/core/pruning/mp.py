"""Magnitude pruning: the elements of largest magnitude of a matrix (Eq. 1-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget


def mp(matrix: Tensor, budget: Budget) -> LowRankSparse:
    """Return M (*) W, where M marks the `budget.kept` elements of largest magnitude.

    Args:
        matrix: W (d, k), float32 or float64, finite. Overwritten.
        budget: how many elements are kept.

    Example:
        >>> mp(torch.tensor([[1.0, -5.0], [4.0, 2.0]]), Budget(rank=0, kept=2)).sparse
        tensor([[ 0., -5.],
                [ 4.,  0.]])
    """
    mask = largest_entries(matrix, budget.kept)
    return LowRankSparse(sparse=mask_(matrix, mask), mask=mask)


def mask_(matrix: Tensor, mask: Tensor) -> Tensor:
    """Set the matrix to 0 wherever the mask is False, in place, and return it.

    A product is many times as fast as `where` with an irregular mask; it gives zeros of either
    sign, and adding 0.0 turns -0.0 into 0.0.

    Example:
        >>> mask_(torch.tensor([-1.0, 2.0]), torch.tensor([False, True]))
        tensor([0., 2.])
    """
    return matrix.mul_(mask).add_(0.0)


def largest_entries(matrix: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` elements of largest magnitude.

    Of equal ones the earliest in row-major order are taken. It takes a selection, O(numel), not
    a sort.

    Args:
        matrix: any shape, float32 or float64, finite.
        count: 0 <= count <= numel.

    Returns:
        A bool tensor of `matrix`'s shape.

    Example:
        >>> largest_entries(torch.tensor([1.0, -3.0, 3.0]), 1)
        tensor([False,  True, False])
    """
    if count == 0:
        return torch.zeros_like(matrix, dtype=torch.bool)
    threshold = _kth_largest(matrix.abs(), count)
    mask = (matrix.abs() >= threshold).contiguous()
    surplus = int(torch.count_nonzero(mask)) - count
    if surplus:
        ties = (matrix.abs() == threshold).reshape(-1).nonzero().squeeze(1)
        mask.view(-1)[ties[len(ties) - surplus :]] = False
    return mask


def _kth_largest(magnitude: Tensor, count: int) -> float:
    """Return the `count`-th largest element of `magnitude`, which may be reordered."""
    index = magnitude.numel() - count  # in ascending order
    if magnitude.device.type == "cuda":
        return float(torch.kthvalue(magnitude.reshape(-1), index + 1).values)
    elements = magnitude.reshape(-1).cpu().numpy()
    elements.partition(index)
    return float(elements[index])
