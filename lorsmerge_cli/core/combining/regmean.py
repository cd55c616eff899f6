"""RegMean: the update whose layers' outputs are nearest to those of all fine-tunes (Jin et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

GRAM = "gram"  # the statistic that it takes
OFF_DIAGONAL = 1.0  # the authors take 0.9 of text models; whole Gram matrices were best on speech
RIDGE = 1e-3


def regmean(
    terms: Iterable[tuple[Tensor, float, Tensor]],
    off_diagonal: float = OFF_DIAGONAL,
    ridge: float = RIDGE,
) -> Tensor:
    """Return (sum_i t_i (G_i + r I)) (sum_i G_i + r I)^-1, with t_i = lambda_i * delta_i.

    G_i is the Gram matrix of fine-tune i's inputs to this layer, so that the update minimises
    sum_i E|(W - t_i) x_i|^2 + r |W - t_i|^2 (arXiv:2212.09849). Where no input of any fine-tune has
    been, it is the mean of the t_i, as it is throughout where all G_i are equal or zero. One delta
    comes out as it is.

    Args:
        terms: a delta (d, k) (float32 or float64, finite), its coefficient, and the mean of x x^T
            over the inputs x of its fine-tune's layer (k, k), symmetric and positive semidefinite.
        off_diagonal: factor of the Gram matrices' elements off the diagonal, 0 to 1.
        ridge: r as a share of the mean of all diagonal elements, from 1e-6 on: statistics that were
            rounded to float32 say nothing of directions below.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([[2.0, 2.0]]), torch.tensor([[4.0, 4.0]])
        >>> heard_a, heard_b = torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2)
        >>> regmean([(a, 1.0, heard_a), (b, 1.0, heard_b)], ridge=1e-6).round(decimals=3)
        tensor([[3., 4.]])
    """
    weighted = plain = total = torch.zeros((), dtype=torch.float64)
    count, dtype = 0, torch.float32
    for delta, scale, inputs in terms:
        gram = inputs.double()
        diagonal = torch.diagonal(gram).clone()
        gram = off_diagonal * gram
        torch.diagonal(gram).copy_(diagonal)
        scaled = scale * delta.double()
        weighted = weighted.to(gram.device) + scaled @ gram
        plain = plain.to(gram.device) + scaled
        total = total.to(gram.device) + gram
        count, dtype = count + 1, torch.promote_types(dtype, delta.dtype)
        del delta, inputs, gram, scaled  # before the next ones are made
    if not count:
        raise ValueError("no deltas to combine")
    mean = plain / count
    smallest = ridge * float(torch.diagonal(total).mean())  # count * r
    if not smallest > 0:  # nothing was heard
        return mean.to(dtype)
    # the same as a correction of the mean, so that rounding errors of G_i do not touch the mean
    return (mean + _solved(total, smallest, weighted - mean @ total)).to(dtype)


def _solved(total: Tensor, ridge: float, wanted: Tensor) -> Tensor:
    """Return wanted (total + ridge I)^-1, the negative eigenvalues of `total` taken for zero."""
    shifted = total.clone()
    torch.diagonal(shifted).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if not failed:
        solved: Tensor = torch.cholesky_solve(wanted.T, factor).T
        return solved
    # rounding to float32 may leave a Gram matrix with eigenvalues below a small ridge
    values, vectors = torch.linalg.eigh(total)
    clamped: Tensor = (wanted @ vectors / (values.clamp(min=0) + ridge)) @ vectors.T
    return clamped
