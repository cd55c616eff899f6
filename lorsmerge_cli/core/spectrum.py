"""Singular triplets and polar factors: what the combiners that work on spectra are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram, many_eigenpairs
from lorsmerge_cli.core.pruning.svp import leading_vectors

# A polar factor of directions that are shorter than this beside the longest would be made of
# rounding errors: singular vectors of a float32 matrix are known to about 1e-6.
SHORTEST = 1e-5
ROUNDINGS = 8  # that an element of a matrix may have gone through: a difference, a product, a sum
SQUARED = 1e-3  # of the largest singular value: less than a Gram matrix tells to nine digits


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
    _, basis = _leading(matrix, rank)
    projected = basis.T @ rows.double()
    values = torch.linalg.vector_norm(projected, dim=1)
    real = values > _noise(matrix)
    if not bool(real.all()):
        basis, values, projected = basis[:, real], values[real], projected[real]
    short, long = basis, projected.T / values
    return (short, values, long) if wide else (long, values, short)


def _noise(matrix: Tensor) -> Tensor:
    """Return a bound of the singular values that may be rounding errors."""
    step = torch.finfo(matrix.dtype).eps / 2
    norm: Tensor = torch.linalg.vector_norm(matrix, dtype=torch.float64)
    return ROUNDINGS * step * norm


def with_values(matrix: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return U diag(f(s)) V^T of a matrix U diag(s) V^T, in float64.

    Singular values that may be rounding errors become zero, and f does not see them, as in
    `singular_triplets`.

    Args:
        matrix: (d, k), float32 or float64, finite.
        change: f, which maps s (r,), descending, float64 and not empty, to as many values, none of
            them negative.

    Example:
        >>> with_values(torch.diag(torch.tensor([3.0, 0.0, 4.0])), lambda values: values / values)
        tensor([[1., 0., 0.],
                [0., 0., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    wide, double = matrix.shape[0] <= matrix.shape[1], matrix.double()
    rows = double if wide else double.T
    values, basis = _leading(matrix, len(rows))
    small = values < SQUARED * values[0]
    if bool(small.any()):
        values[small] = torch.linalg.vector_norm(basis[:, small].T @ rows, dim=1)
    real = values > _noise(matrix)
    values, basis = values[real], basis[:, real]
    if not len(values):
        return torch.zeros_like(double)
    # U diag(f(s)) V^T = U diag(f(s) / s) U^T W, or W V diag(f(s) / s) V^T
    factor = gram(basis * (change(values) / values).sqrt(), torch.float64)
    return factor @ double if wide else double @ factor


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values of a matrix and its vectors of the short side.

    In float64 throughout: a rounded vector of a large value is a large error in a small one's, which
    making vectors of several deltas orthogonal multiplies by their condition number.
    """
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values, basis = leading_vectors(rows, rank, torch.float64, many_eigenpairs)
    return values.double(), basis.double()


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
        >>> polar(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).double()).round(decimals=9)
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
        >>> eye = torch.eye(2).double()
        >>> between_polars(2 * eye, torch.tensor([3.0, 1.0]).double(), eye).round(decimals=9)
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
    values, vectors = many_eigenpairs(gram(short, torch.float64), len(short))
    real = values > SHORTEST**2 * values[0]
    return gram(vectors[:, real] * values[real].pow(-0.25), torch.float64)
