"""Pruning of a stack of matrices, such as the experts of a mixture, each by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, accumulable, dense


def pruned_stack(stack: Tensor, pruned: Callable[[int, Tensor], Delta]) -> Tensor:
    """Return all pruned matrices as one tensor, float32 or float64.

    Args:
        stack: (E, d, k), any float dtype.
        pruned: maps an index and its matrix (d, k) to the pruned matrix.

    Example:
        >>> pruned_stack(torch.ones(2, 1, 2), lambda index, matrix: matrix * index)
        tensor([[[0., 0.]],
        <BLANKLINE>
                [[1., 1.]]])
    """
    result = torch.empty_like(accumulable(stack), memory_format=torch.contiguous_format)
    for index, matrix in enumerate(stack):
        result[index] = dense(pruned(index, matrix))
    return result
