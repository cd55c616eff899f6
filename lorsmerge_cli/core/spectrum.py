"""Singular triplets and polar factors: what the combiners that work on spectra are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram
from lorsmerge_cli.core.pruning.svp import leading_basis

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
    wide = matrix.shape[0] <= matrix.shape[1]
    rows = matrix if wide else matrix.T
    # In float64 throughout: a rounded vector of a large value is a large error in a small one's, which
    # making vectors of several deltas orthogonal multiplies by their condition number.
    basis = leading_basis(rows, rank, torch.float64)
    projected = basis.T @ rows.double()
    values = torch.linalg.vector_norm(projected, dim=1)
    step = torch.finfo(matrix.dtype).eps / 2
    noise = ROUNDINGS * step * torch.linalg.vector_norm(matrix, dtype=torch.float64)
    real = values > noise
    values = values[real]
    short, long = basis[:, real], projected[real].T / values
    return (short, values, long) if wide else (long, values, short)


def boosted(values: Tensor, beta: float) -> Tensor:
    """Return singular values, the smaller ones raised to that at which their sum reaches a share.

    s_j becomes max(s_j, s_c), with c the first index at which s_1 + ... + s_c is at least beta times
    the sum of all.

    Args:
        values: s (r,), descending, not negative.
        beta: the share, 0 to 1. At 0 all become the largest, at 1 none is raised.

    Example:
        >>> boosted(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.5)
        tensor([4., 3., 3., 3.])
    """
    if beta >= 1 or not len(values):
        return values
    sums = values.cumsum(0)
    index = int((sums < beta * sums[-1]).sum())
    return values.clamp(min=float(values[index]))


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
    return (
        columns @ _inverse_root(columns) if _is_tall(columns) else _inverse_root(columns) @ columns
    )


def between_polars(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return polar(U) diag(s) polar(V)^T (d, k), the products in the order that costs least.

    Args:
        left: U, (d, m), float64.
        values: s, (m,), float64.
        right: V, (k, m), float64.

    Example:
        >>> between_polars(2 * torch.eye(2).double(), torch.tensor([3.0, 1.0]).double(), torch.eye(2).double())
        tensor([[3., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    if len(left) < len(right):
        return between_polars(right, values, left).T.contiguous()
    inner = (values * polar(right)).T
    root = _inverse_root(left)
    return left @ (root @ inner) if _is_tall(left) else root @ (left @ inner)


def _is_tall(columns: Tensor) -> bool:
    return columns.shape[0] >= columns.shape[1]


def _inverse_root(columns: Tensor) -> Tensor:
    """Return the inverse square root of the short side's Gram matrix, on the directions that X has.

    X (X^T X)^(-1/2) = (X X^T)^(-1/2) X.
    """
    short = columns.T if _is_tall(columns) else columns
    if not columns.numel():
        return columns.new_zeros(len(short), len(short))
    values, vectors = torch.linalg.eigh(gram(short, torch.float64))
    real = values > SHORTEST**2 * values[-1]
    vectors = vectors[:, real]
    root: Tensor = (vectors * values[real].rsqrt()) @ vectors.T
    return root
