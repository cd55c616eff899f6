"""Singular value pruning: the top singular triplets of a matrix (Eq. 3-4, 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import EigenError, gram, largest_eigenpairs
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget

# Guard of the Gram route. The eigenvalues of a Gram matrix are sigma_i^2, and rounding moves each by
# at most a few rounding steps of the largest, sigma_1^2 (Weyl's inequality). Let q be the smallest
# eigenvalue that is kept, sigma_r^2, divided by the largest. In float32 (step 2^-23) a q of 1e-2
# (sigma_r = sigma_1 / 10) lies 1e5 steps above that noise, and the result is trusted. If q is smaller,
# the Gram matrix is formed in float64 (step 2^-52). The energy that its eigenvectors miss is then
# wrong by a few steps of the whole energy, so the error, the root of an energy, stays under
# sqrt(2^-52), 1.5e-8, of the matrix's norm, whatever its spectrum: float32 weights cannot tell.
# For float64 weights a q under 1e-8 leads to the SVD of the matrix itself.
TRUSTED = {torch.float32: 1e-2, torch.float64: 1e-8}
SAFE_RANGE = (1e-25, 1e25)  # of the largest eigenvalue, so that nothing under- or overflows


def svp(matrix: Tensor, budget: Budget) -> LowRankSparse:
    """Return L = U_r Sigma_r V_r^T of the `budget.rank` largest singular values.

    Args:
        matrix: W (d, k), float32 or float64, finite.
        budget: the rank.

    Example:
        >>> svp(torch.diag(torch.tensor([3.0, 1.0])), Budget(rank=1, kept=0)).to_dense()
        tensor([[3., 0.],
                [0., 0.]])
    """
    left, right = truncated_svd(matrix, budget.rank)
    return LowRankSparse(left, right)


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of the best approximation of a rank: left @ right = U_r Sigma_r V_r^T.

    The singular vectors of the short side, Q, are eigenvectors of the Gram matrix of that
    side, and L is the projection onto them: Q (Q^T W), or (W Q) Q^T. That takes a quarter of
    the time of a full SVD. A Gram matrix squares the condition number: if the spectrum is too
    wide for float32 it is formed in float64, and if that fails the SVD itself is taken.

    Args:
        matrix: (d, k), float32 or float64, finite.
        rank: 0 <= rank <= min(d, k).

    Returns:
        left (d, rank) and right (rank, k), in `matrix`'s dtype. The factor of the short side
        is orthonormal; the other's norms are the singular values, in descending order.

    Example:
        >>> left, right = truncated_svd(torch.diag(torch.tensor([3.0, 1.0])), 1)
        >>> left @ right
        tensor([[3., 0.],
                [0., 0.]])
    """
    if rank == 0:
        return matrix.new_empty(matrix.shape[0], 0), matrix.new_empty(0, matrix.shape[1])
    wide = matrix.shape[0] <= matrix.shape[1]
    rows = matrix if wide else matrix.T
    basis = leading_vectors(rows, rank, rows.dtype, largest_eigenpairs)[1].to(rows.dtype)
    projected = basis.T @ rows
    return (basis, projected) if wide else (projected.T.contiguous(), basis.T.contiguous())


def leading_vectors(
    rows: Tensor,
    rank: int,
    first: torch.dtype,
    eigenpairs: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Return the largest singular values (rank,) of a wide matrix and its left vectors (n, rank).

    Values are roots of a Gram matrix's eigenvalues: exact but for rounding steps of the largest one's
    square.

    Args:
        rows: W (n, m), n <= m, float32 or float64, finite.
        rank: 1 <= rank <= n.
        first: the dtype to try first, no narrower than `rows`; float64 is next, where there is one.
        eigenpairs: `largest_eigenpairs`, or what does the same.

    Returns:
        In the dtype that they could be computed in.

    Example:
        >>> w = torch.diag(torch.tensor([0.5, 2.0]))
        >>> leading_vectors(w, 1, torch.float32, largest_eigenpairs)
        (tensor([2.]), tensor([[0.],
                [1.]]))
    """
    precise = widest(rows)
    for dtype in dict.fromkeys((first, precise)):
        last_resort = dtype == torch.float64 and rows.dtype != torch.float64
        try:
            values, vectors = eigenpairs(gram(rows, dtype), rank)
        except EigenError:
            continue
        largest, smallest = float(values[0]), float(values[-1])
        in_range = SAFE_RANGE[0] < largest < SAFE_RANGE[1]
        if last_resort or (in_range and smallest >= TRUSTED[dtype] * largest):
            return values.clamp(min=0).sqrt(), vectors
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    return values[:rank], left[:, :rank]


def widest(tensor: Tensor) -> torch.dtype:
    """Return the widest dtype that a tensor's device has: Metal lacks float64.

    Example:
        >>> widest(torch.ones(1))
        torch.float64
    """
    return tensor.dtype if tensor.device.type == "mps" else torch.float64
