"""Pruners of one delta matrix. A new one is a file here and a line in `PRUNERS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.lors import lors
from lorsmerge_cli.core.pruning.mp import mp
from lorsmerge_cli.core.pruning.stack import pruned_stack
from lorsmerge_cli.core.pruning.svp import svp

# (d, k) float32 or float64 and finite, with a budget that is not `whole` -> the pruned matrix.
# The matrix may be overwritten.
Pruner = Callable[[Tensor, Budget], LowRankSparse]

PRUNERS: dict[str, Pruner] = {"svp": svp, "mp": mp, "lors": lors}


def prune(delta: Tensor, pruner: str, budget: Budget) -> Delta:
    """Return the pruned delta: a `LowRankSparse`, or the delta itself if the budget is all of it.

    Args:
        delta: (d, k), any float dtype, finite; or a stack (E, d, k), of which every matrix is
            pruned by itself, returned as a tensor.
        pruner: a name in `PRUNERS`.
        budget: what to keep of each matrix.

    Example:
        >>> prune(torch.tensor([[1.0, -5.0], [4.0, 2.0]]), "mp", Budget(rank=0, kept=1)).to_dense()
        tensor([[ 0., -5.],
                [ 0.,  0.]])
    """
    if budget.whole:
        return accumulable(delta)
    if delta.dim() == 3:
        return pruned_stack(delta, lambda _, matrix: prune(matrix, pruner, budget))
    # A copy, because the pruner overwrites its input, and because BLAS's rounding depends on the
    # alignment of its operands in memory, which for a mapped file is that of the file.
    matrix = accumulable(delta).clone(memory_format=torch.contiguous_format)
    del delta  # frees its memory, if nothing else holds it
    return PRUNERS[pruner](matrix, budget)
