"""One matrix pruned by many budgets: decomposed once, at the largest rank, and sliced."""

from __future__ import annotations

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.mp import mp
from lorsmerge_cli.core.pruning.stack import pruned_stack
from lorsmerge_cli.core.pruning.svp import truncated_svd


class RepeatedPruning:
    """Prunes one matrix as `prune` does, to float error, and keeps its singular triplets.

    Args:
        largest_rank: of any budget to come.
    """

    def __init__(self, largest_rank: int) -> None:
        self._largest_rank = largest_rank
        self._factors: tuple[Tensor, Tensor] | None = None
        self._slices: dict[int, RepeatedPruning] = {}

    def prune(self, matrix: Tensor, budget: Budget) -> Delta:
        """The matrix within a budget.

        Args:
            matrix: (d, k), or (E, d, k) for a stack; any float dtype, finite; the same one every
                time.
            budget: of a rank up to `largest_rank`.
        """
        if budget.whole:
            return accumulable(matrix)
        if matrix.dim() == 3:
            return pruned_stack(matrix, lambda index, one: self._slice(index).prune(one, budget))
        matrix = accumulable(matrix).clone()
        if not budget.rank:
            return mp(matrix, budget)
        if self._factors is None:
            self._factors = truncated_svd(matrix, self._largest_rank)
        left, right = (self._factors[0][:, : budget.rank], self._factors[1][: budget.rank])
        if not budget.kept:
            return LowRankSparse(left, right)
        sparse = mp(matrix.addmm_(left, right, alpha=-1), budget)
        return LowRankSparse(left, right, sparse.sparse, sparse.mask)

    def _slice(self, index: int) -> RepeatedPruning:
        return self._slices.setdefault(index, RepeatedPruning(self._largest_rank))
