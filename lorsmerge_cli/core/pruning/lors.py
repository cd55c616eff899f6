"""LoRS: a low-rank part by SVP, and a sparse part of the residual by MP (Eq. 5-7)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.mp import mp
from lorsmerge_cli.core.pruning.svp import svp, truncated_svd


def lors(matrix: Tensor, budget: Budget) -> LowRankSparse:
    """Return L = SVP(W) and S = MP(W - L), or the one part that the budget has.

    Args:
        matrix: W (d, k), float32 or float64, finite. Overwritten.
        budget: rank of L and elements of S, not both 0.

    Example:
        >>> lors(torch.diag(torch.tensor([3.0, 2.0, 1.0])), Budget(rank=1, kept=1)).to_dense()
        tensor([[3., 0., 0.],
                [0., 2., 0.],
                [0., 0., 0.]])
    """
    if not budget.kept:
        return svp(matrix, budget)
    if not budget.rank:
        return mp(matrix, budget)
    left, right = truncated_svd(matrix, budget.rank)
    residual = matrix.addmm_(left, right, alpha=-1)
    return replace(mp(residual, budget), left=left, right=right)
