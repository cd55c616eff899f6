"""Iso-C: the sum of deltas with all its singular values made equal (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lorsmerge_cli.core.combining.sum import sum_
from lorsmerge_cli.core.spectrum import with_values


def iso_c(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return mean(s) U V^T for the sum U diag(s) V^T of scaled deltas (arXiv:2502.04959).

    Singular values that are rounding errors of the sum, as most are where deltas have a low rank,
    stay zero and do not count in the mean; the authors raise them, and with them arbitrary
    directions, to the mean as well.

    Args:
        deltas: pairs of a delta (d, k) (float32 or float64, not empty, finite) and its coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> import torch
        >>> iso_c([(torch.diag(torch.tensor([3.0, 1.0])), 1.0)])
        tensor([[2., 0.],
                [0., 2.]])
    """
    total = sum_(deltas)
    return with_values(total, lambda values: values.mean().expand(len(values))).to(total.dtype)
