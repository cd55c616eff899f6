"""STAR: the singular triplets that hold most of the spectrum, enlarged to all of it (Lee et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from lorsmerge_cli.core.eigen import many_eigenpairs
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.svp import leading_vectors, widest


def star(matrix: Tensor, budget: Budget, eta: float = 0.4) -> LowRankSparse:
    """Return the fewest leading triplets whose values add up to a share of all values, rescaled.

    The values that are kept are multiplied so that their sum, the nuclear norm, is that of W
    (arXiv:2502.10339).

    Args:
        matrix: W (d, k), float32 or float64, finite.
        budget: not used: the spectrum decides the rank.
        eta: the share of the sum of singular values, above 0; at 1 nothing is pruned.

    Example:
        >>> import torch
        >>> star(torch.diag(torch.tensor([3.0, 2.0, 1.0])), Budget(rank=0, kept=0), 0.5).to_dense()
        tensor([[6., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.]])
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    rows = matrix if wide else matrix.T
    values, basis = leading_vectors(rows, len(rows), widest(rows), many_eigenpairs)
    sums = values.cpu().double().cumsum(0)  # Metal has no float64
    total = float(sums[-1])
    rank = min(len(rows), 1 + int((sums < eta * total).sum()))
    kept = float(sums[rank - 1])
    basis = basis[:, :rank].to(rows.dtype)
    projected = (basis.T @ rows) * (total / kept if kept else 1.0)
    if wide:
        return LowRankSparse(basis, projected)
    return LowRankSparse(projected.T.contiguous(), basis.T.contiguous())
