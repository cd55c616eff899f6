"""Iso-C: the sum of deltas with all its singular values made equal (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lorsmerge_cli.core.combining.mean import mean
from lorsmerge_cli.core.combining.sum import sum_
from lorsmerge_cli.core.spectrum import singular_triplets


def iso_c(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return mean(s) U V^T for the sum U diag(s) V^T of scaled deltas (arXiv:2502.04959).

    A tensor that is no matrix is averaged, as the authors do. Singular values that are rounding
    errors of the sum, as most are where deltas have a low rank, stay zero and out of the mean; the
    authors give their arbitrary directions as much as the others.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all, finite) and its
            coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> import torch
        >>> iso_c([(torch.diag(torch.tensor([3.0, 1.0])), 1.0)])
        tensor([[2., 0.],
                [0., 2.]])
    """
    pairs = list(deltas)
    if not pairs or pairs[0][0].dim() != 2 or not pairs[0][0].numel():
        return mean(pairs)
    total = sum_(pairs)
    del pairs  # their memory is wanted
    left, values, right = singular_triplets(total, min(total.shape))
    if not len(values):
        return total
    return (left @ (values.mean() * right.T)).to(total.dtype)
