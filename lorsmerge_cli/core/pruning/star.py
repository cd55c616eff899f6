"""STAR: the singular triplets that hold most of the spectrum, enlarged to all of it (Lee et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.svp import truncated_svd


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
    short_side = min(matrix.shape)
    left, right = truncated_svd(matrix, short_side)
    wide = matrix.shape[0] <= matrix.shape[1]
    values = right.norm(dim=1) if wide else left.norm(dim=0)
    sums = values.cpu().double().cumsum(0)  # Metal has no float64
    total = float(sums[-1])
    rank = min(short_side, 1 + int((sums < eta * total).sum()))
    kept = float(sums[rank - 1])
    grown = left[:, :rank] * (total / kept if kept else 1.0)
    return LowRankSparse(grown, right[:rank])
