"""Singular triplets and polar factors: what the combiners that work on spectra are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram
from lorsmerge_cli.core.pruning.svp import truncated_svd

# A polar factor of directions that are shorter than this beside the longest would be made of
# rounding errors: singular vectors of a float32 matrix are known to about 1e-6.
SHORTEST = 1e-5
ROUNDINGS = 8  # that an element of a matrix may have gone through: a difference, a product, a sum


def singular_triplets(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (d, r), s (r,) and V (k, r) of a matrix's largest singular values, in float64.

    Triplets whose value may be a rounding error are not among them: their vectors are arbitrary. If
    each element was rounded n times to half a step eps / 2, the error matrix has a norm of at most
    n eps / 2 ||W||_F, and no singular value moves by more. So r may be below `rank`, and is 0 for a
    matrix of zeros.

    Args:
        matrix: (d, k), float32 or float64, finite.
        rank: of how many triplets, 1 <= rank <= min(d, k).

    Example:
        >>> u, s, v = singular_triplets(torch.diag(torch.tensor([3.0, 0.0, 4.0])), rank=3)
        >>> s
        tensor([4., 3.], dtype=torch.float64)
    """
    # In float64 throughout: a rounded vector of a large value is a large error in a small one's, which
    # making vectors of several deltas orthogonal multiplies by their condition number.
    left, right = truncated_svd(matrix.double(), rank)
    wide = matrix.shape[0] <= matrix.shape[1]
    values = (
        torch.linalg.vector_norm(right, dim=1) if wide else torch.linalg.vector_norm(left, dim=0)
    )
    step = torch.finfo(matrix.dtype).eps / 2
    noise = ROUNDINGS * step * torch.linalg.vector_norm(matrix, dtype=torch.float64)
    real = values > noise
    left, values, right = left[:, real], values[real], right[real].T
    return (left, values, right / values) if wide else (left / values, values, right)


def polar(columns: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns that is nearest to a matrix (its polar factor).

    For X = P diag(s) Q^T that is P Q^T = X (X^T X)^(-1/2). Where columns of X depend on one
    another no such matrix is near, and P Q^T of the directions that X has is returned.

    Args:
        columns: X, (n, m), float64.

    Example:
        >>> polar(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).double())
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    if not columns.numel():
        return columns
    # of the short side; X (X^T X)^(-1/2) = (X X^T)^(-1/2) X
    tall = columns.shape[0] >= columns.shape[1]
    short = columns.T if tall else columns
    values, vectors = torch.linalg.eigh(gram(short, torch.float64))
    real = values > SHORTEST**2 * values[-1]
    vectors = vectors[:, real]
    root: Tensor = (vectors * values[real].rsqrt()) @ vectors.T
    return columns @ root if tall else root @ columns
