"""Pruning of one matrix by many budgets: one decomposition at the largest rank, sliced for each."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.mp import mp
from lorsmerge_cli.core.pruning.stack import pruned_stack
from lorsmerge_cli.core.pruning.svp import truncated_svd


class RepeatedPruning:
    """Prune one matrix as `prune` does, up to float error, and keep its singular triplets.

    Args:
        largest_rank: of all budgets.

    Example:
        >>> matrix, pruning = torch.diag(torch.tensor([3.0, 2.0, 1.0])), RepeatedPruning(2)
        >>> [pruning.prune(matrix, Budget(rank, kept=0)).to_dense().sum() for rank in (1, 2)]
        [tensor(3.), tensor(5.)]
    """

    def __init__(self, largest_rank: int) -> None:
        self._largest_rank = largest_rank
        self._factors: tuple[Tensor, Tensor] | None = None
        self._slices: dict[int, RepeatedPruning] = {}

    def prune(self, matrix: Tensor, budget: Budget) -> Delta:
        """Return the pruned matrix.

        Args:
            matrix: (d, k), or (E, d, k) for a stack; any float dtype, finite; the same in each
                call.
            budget: what to keep, of a rank up to `largest_rank`.
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
        residual = matrix.addmm_(left, right, alpha=-1)
        return replace(mp(residual, budget), left=left, right=right)

    def _slice(self, index: int) -> RepeatedPruning:
        return self._slices.setdefault(index, RepeatedPruning(self._largest_rank))
