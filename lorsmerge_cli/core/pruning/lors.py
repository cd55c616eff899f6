"""LoRS: a low-rank part by SVP and, of what it leaves, a sparse part by MP (Eq. 5-7)."""

from __future__ import annotations

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.mp import largest_entries, mask_, mp
from lorsmerge_cli.core.pruning.svp import svp, truncated_svd


def lors(matrix: Tensor, budget: Budget) -> LowRankSparse:
    """L = SVP(W) and S = MP(W - L); with a budget for one part only, that part alone. Overwrites W."""
    if not budget.kept:
        return svp(matrix, budget)
    if not budget.rank:
        return mp(matrix, budget)
    left, right = truncated_svd(matrix, budget.rank)
    residual = matrix.addmm_(left, right, alpha=-1)
    mask = largest_entries(residual, budget.kept)
    return LowRankSparse(left, right, mask_(residual, mask), mask)
