"""Pruners: what is kept of one delta matrix. A new one is a file here and a line in `PRUNERS`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.lors import lors
from lorsmerge_cli.core.pruning.mp import mp
from lorsmerge_cli.core.pruning.svp import svp

# (d, k) float32 or float64 and finite, with a budget that is not `whole` -> the pruned matrix
Pruner = Callable[[Tensor, Budget], LowRankSparse]

ALIGNMENT = 64  # bytes, of PyTorch's own memory

PRUNERS: dict[str, Pruner] = {"svp": svp, "mp": mp, "lors": lors}


def prune(delta: Tensor, pruner: str, budget: Budget) -> Delta:
    """The pruned delta: a `LowRankSparse`, or the delta itself where the budget is all of it.

    Args:
        delta: (d, k), any float dtype, finite.
        pruner: a name in `PRUNERS`.
        budget: what to keep.
    """
    matrix = accumulable(delta)
    return matrix if budget.whole else PRUNERS[pruner](_aligned(matrix), budget)


def _aligned(matrix: Tensor) -> Tensor:
    # How BLAS rounds depends on where its operands lie, and where a mapped matrix lies on the
    # file: a copy gives every source of a delta the same pruned delta, to the last bit.
    return matrix.clone() if matrix.data_ptr() % ALIGNMENT else matrix
