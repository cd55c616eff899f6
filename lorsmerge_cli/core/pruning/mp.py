"""Magnitude pruning: the largest entries of a matrix (Eq. 1-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget


def mp(matrix: Tensor, budget: Budget) -> LowRankSparse:
    """M (*) W, where M marks the `budget.kept` entries of largest magnitude. Overwrites W."""
    mask = largest_entries(matrix, budget.kept)
    return LowRankSparse(sparse=mask_(matrix, mask), mask=mask)


def mask_(matrix: Tensor, mask: Tensor) -> Tensor:
    """The matrix, in place: 0 wherever the mask is False.

    A product is many times as fast as a choice by a mask without a pattern; what it leaves is
    zero of either sign, and adding zero makes it the positive one.
    """
    return matrix.mul_(mask).add_(0.0)


def largest_entries(matrix: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` entries of largest magnitude, the earliest in row-major order of equals.

    Args:
        matrix: any shape, float32 or float64, finite.
        count: 0 <= count <= numel.

    Returns:
        A bool tensor of `matrix`'s shape. Cost: a selection, O(numel), no sort.
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
    """The `count`-th largest of `magnitude`, whose entries may be reordered."""
    place = magnitude.numel() - count  # in ascending order
    if magnitude.device.type == "cuda":
        return float(torch.kthvalue(magnitude.reshape(-1), place + 1).values)
    entries = magnitude.reshape(-1).cpu().numpy()
    entries.partition(place)
    return float(entries[place])
